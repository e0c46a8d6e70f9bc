defmodule Snakepit.SharedMemory.Transport do
  @moduledoc false
  # What stands for Snakepit and its workers in tests of the bridge: each call has a function with it that is the tool.
  # What real workers do, Python's tests show (test_snakepit.py), and both together the example
  # (examples/workers/run.exs).

  import Snakepit.SharedMemory.Case, only: [file_of: 2, native: 3]

  alias Snakepit.SharedMemory.{Bridge, Native}

  def execute(command, args, opts), do: run(command, args, opts)

  def execute_stream(command, args, callback, opts) do
    for chunk <- run(command, args, opts), do: callback.(chunk)
    :ok
  end

  defp run(_command, args, opts) do
    {fun, opts} = Keyword.pop!(opts, :tool)
    fun.(args, opts)
  end

  defmodule Sessioned do
    @moduledoc false
    # A transport that has sessions, and answers what it was called with.
    def execute(_command, _args, _opts), do: raise("not this one")

    def execute_in_session(session, command, args, opts),
      do: {:ok, {session, command, args, Keyword.delete(opts, :tool)}}
  end

  @doc "A call of the bridge with `tool` as the worker's part, and a threshold of 1,000 bytes."
  def call(args, place, tool, opts \\ []) do
    opts = Keyword.merge([via: __MODULE__, tool: tool, threshold: 1000], opts)
    Bridge.execute("tool", args, opts ++ place)
  end

  @doc """
  What a worker does with `transfer=True`: a sealed region that nobody writes; `keep: true` keeps it,
  and with `ttl: true` it waits a minute for somebody to take it.
  """
  def give(data, place, options \\ []) do
    name = "given-#{System.unique_integer([:positive])}"
    {:ok, writer} = Native.create(native(place, name, %{size: 8192}))
    # One that nobody holds any more is dropped, and its region with it.
    Process.put(name, writer)
    descriptor = if options[:dtype], do: {options[:dtype], options[:shape], :numpy}
    {:ok, _} = Native.write(writer, data, descriptor)
    {:ok, _} = Native.seal(writer)
    {:ok, handle} = Native.writer_handle(writer)
    unless options[:keep], do: {:ok, _} = Native.release(writer)
    if options[:ttl], do: wait_for_somebody(name, place)
    {handle, writer}
  end

  # Native calls of this library only release: the time to live is written where the format has it.
  defp wait_for_somebody(name, place) do
    {:ok, file} = :file.open(file_of(name, place), [:read, :write, :raw])
    :ok = :file.pwrite(file, 160, <<60_000_000_000::64-little>>)
    :ok = :file.close(file)
  end

  @doc "More than the threshold, and no text."
  def large(byte \\ 255), do: :binary.copy(<<byte>>, 5000)
end
