defmodule Demo.Ways do
  @moduledoc """
  Three ways for bytes to get from Elixir to Python, where one is added to each, and back. In all of them the worker
  computes with the same numpy call.

  A way is opened for data of one size, gone any number of times, and closed.
  """

  alias Demo.{Pipe, Worker}
  alias Snakepit.SharedMemory, as: SHM

  @enforce_keys [:name, :copies, :go, :tidy, :close]
  defstruct @enforce_keys

  @typedoc """
  `go` takes the data and returns the result, how many bytes crossed the pipe, and what `tidy` needs to give back
  what this one round took. `copies` is how often the payload is copied between memory and memory in a round.
  """
  @type t :: %__MODULE__{
          name: String.t(),
          copies: non_neg_integer(),
          go: (binary() -> {binary(), pos_integer(), term()}),
          tidy: (term() -> term()),
          close: (() -> term())
        }

  @doc "The yardstick: a port carries the bytes. Into the kernel and out of it, each way: four copies."
  @spec pipe(port()) :: t()
  def pipe(port) do
    go = fn data ->
      result = Pipe.call(port, data)
      # Four bytes of length go before each message.
      {result, byte_size(data) + byte_size(result) + 8, nil}
    end

    %__MODULE__{name: "pipe", copies: 4, go: go, tidy: &Function.identity/1, close: fn -> :ok end}
  end

  @doc """
  A handle each way, each of a region of its own. One copy, into the first region; Python reads it there and fills the
  second in place; Elixir reads that where it lies.
  """
  @spec handles(Worker.t()) :: t()
  def handles(worker) do
    go = fn data ->
      handle = SHM.share!(data, dtype: "|u1", shape: [byte_size(data)])
      {%{"handle" => answer}, crossed} = Worker.call(worker, %{op: "add_one", handle: handle})
      {SHM.fetch!(answer), crossed, [handle, answer]}
    end

    tidy = fn handles -> Enum.each(handles, &SHM.deallocate_region!/1) end
    %__MODULE__{name: "a handle each way", copies: 1, go: go, tidy: tidy, close: fn -> :ok end}
  end

  @doc """
  Two regions that stay, and take a new value each time: nothing is made or given back in a round. Three copies: in,
  from the one into the other (where Python then adds in place), and out.
  """
  @spec standing(Worker.t(), pos_integer()) :: t()
  def standing(worker, size) do
    input = SHM.allocate_region!(capacity(size), slots: 2)
    request = %{input: input, output: "standing-answer"}
    Worker.call(worker, Map.merge(request, %{op: "standing_open", size: size}))
    output = SHM.map_region!(request.output)

    go = fn data ->
      SHM.write!(input, data)
      {_done, crossed} = Worker.call(worker, Map.put(request, :op, "standing_go"))
      {SHM.read!(output), crossed, nil}
    end

    close = fn ->
      SHM.unmap_region!(output)
      Worker.call(worker, Map.put(request, :op, "standing_close"))
      SHM.deallocate_region!(input)
    end

    %__MODULE__{
      name: "two standing regions",
      copies: 3,
      go: go,
      tidy: &Function.identity/1,
      close: close
    }
  end

  # Capacities are whole pages, and the largest pages in use are 64 KiB.
  defp capacity(size), do: div(size + 65_535, 65_536) * 65_536
end
