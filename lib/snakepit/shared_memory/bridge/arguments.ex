defmodule Snakepit.SharedMemory.Bridge.Arguments do
  @moduledoc false
  # What a tool is given: large values as handles, all else as it is.
  #
  # What was shared belongs to the calling process, so that it goes with it, and is released by
  # `release/2` when the call is over.

  alias Snakepit.SharedMemory
  alias Snakepit.SharedMemory.Bridge.{Fallback, Settings, Threshold, Value, Wire}
  alias Snakepit.SharedMemory.Telemetry

  # Marks bytes that JSON cannot carry, until it is known where they go; no caller's tuple has it.
  @bytes {__MODULE__, :bytes}

  @enforce_keys [:args, :opts]
  defstruct @enforce_keys ++ [shared: [], trial: nil]

  # trial: {way, bytes} of a call whose duration tells something of the two ways
  @type t :: %__MODULE__{
          args: map(),
          opts: keyword(),
          shared: [map()],
          trial: {Threshold.way(), pos_integer()} | nil
        }

  @doc "Arguments and options as the transport gets them."
  @spec prepare(map(), keyword(), Settings.t()) :: t()
  def prepare(args, opts, %{adaptive: false} = settings), do: convert(args, opts, settings)

  def prepare(args, opts, settings) do
    sizes = sizes(args, opts, settings)
    way = Threshold.trial(settings.known, sizes)
    prepared = convert(args, opts, %{settings | way: way})

    # A trial of handles in which none was shared has tried nothing.
    if way == nil or (way == :handle and prepared.shared == []),
      do: prepared,
      else: %{prepared | trial: {way, hd(sizes)}}
  end

  @doc "The same without any handle of ours: what is sent where handles are of no use."
  @spec plain(map(), keyword(), Settings.t()) :: t()
  def plain(args, opts, settings), do: convert(args, opts, %{settings | way: :plain})

  @spec release([map()], Settings.t()) :: :ok
  def release(shared, settings) do
    # One that has gone meanwhile, with its session for one, need not be released.
    Enum.each(shared, &SharedMemory.deallocate_region(&1, place(settings)))
  end

  defp place(settings), do: Keyword.take(Settings.place(settings), [:dir])

  # -- sizes of what might travel either way --------------------------------------------------

  defp sizes(args, opts, settings) do
    lowest = Threshold.lowest(settings.known)
    apart = for {_key, value} <- apart(opts), is_binary(value), do: value
    Enum.filter(sizes([args | apart], []), &(&1 >= lowest))
  end

  defp sizes(value, found) when is_binary(value), do: [byte_size(value) | found]
  defp sizes([head | tail], found), do: sizes(tail, sizes(head, found))
  defp sizes(%Value{data: data}, found), do: [IO.iodata_length(data) | found]
  # Its bytes are only known when they are made; it is no subject of a trial.
  defp sizes(%{__struct__: _}, found), do: found
  defp sizes(%{} = map, found), do: Enum.reduce(map, found, &sizes(elem(&1, 1), &2))
  defp sizes(_other, found), do: found

  defp apart(opts) do
    case Keyword.get(opts, :binary_parameters) do
      %{} = parameters when not is_struct(parameters) -> parameters
      _none -> %{}
    end
  end

  # -- conversion -----------------------------------------------------------------------------

  # acc: what was shared, and what goes apart from the JSON. What was shared before something raises (a value
  # that is none) is noted under `noted`, for it would stay as long as the caller lives.
  defp convert(args, opts, settings) do
    noted = {__MODULE__, make_ref()}
    acc = %{shared: [], apart: %{}, noted: noted}

    try do
      {args, acc} = Enum.reduce(args, {%{}, acc}, &argument(&1, &2, settings))
      {args, acc} = Enum.reduce(apart(opts), {args, acc}, &argument_apart(&1, &2, settings))
      %__MODULE__{args: args, opts: with_apart(opts, acc.apart), shared: acc.shared}
    catch
      kind, reason ->
        release(Process.get(noted, []), settings)
        :erlang.raise(kind, reason, __STACKTRACE__)
    after
      Process.delete(noted)
    end
  end

  # Bytes that JSON cannot carry go beside it; those further inside cannot.
  defp argument({key, value}, {args, acc}, settings) do
    case walk(value, acc, settings) do
      {{@bytes, bytes}, acc} -> {args, put_in(acc.apart[name(key)], bytes)}
      {walked, acc} -> {Map.put(args, key, walked), acc}
    end
  end

  # JSON makes text of atoms by itself; what goes beside it may not.
  defp name(key) when is_atom(key), do: Atom.to_string(key)
  defp name(key), do: key

  # What the caller gave as bytes comes as bytes.
  defp argument_apart({key, value}, {args, acc}, settings) do
    case is_binary(value) && share(value, [], acc, settings) do
      {:ok, handle, acc} -> {Map.put(args, key, handle), acc}
      _plain -> {args, put_in(acc.apart[key], value)}
    end
  end

  # What is no map is the transport's to refuse.
  defp with_apart(opts, apart) when apart == %{} do
    case opts[:binary_parameters] do
      %{} = parameters when not is_struct(parameters) -> Keyword.delete(opts, :binary_parameters)
      _none_or_wrong -> opts
    end
  end

  defp with_apart(opts, apart), do: Keyword.put(opts, :binary_parameters, apart)

  defp walk(binary, acc, settings) when is_binary(binary) do
    case share(binary, [], acc, settings) do
      {:ok, handle, acc} -> {Wire.text(handle), acc}
      :plain -> {if(String.valid?(binary), do: binary, else: {@bytes, binary}), acc}
    end
  end

  defp walk(%Value{data: data, options: options}, acc, settings) do
    case share(data, options, acc, settings) do
      {:ok, handle, acc} ->
        {handle, acc}

      :plain ->
        if options == [],
          do: {{@bytes, IO.iodata_to_binary(data)}, acc},
          else: {Wire.inline(data, options), acc}
    end
  end

  defp walk(%{__struct__: Nx.Tensor} = tensor, acc, settings) do
    case Value.of_tensor(tensor) do
      {:ok, value} -> walk(value, acc, settings)
      :error -> {tensor, acc}
    end
  end

  defp walk(%{__struct__: _} = struct, acc, _settings), do: {struct, acc}
  # A handle of the caller's own.
  defp walk(%{"__snakepit_shm__" => _} = handle, acc, _settings), do: {handle, acc}

  defp walk(%{} = map, acc, settings) do
    {pairs, acc} =
      Enum.map_reduce(map, acc, fn {key, value}, acc ->
        {value, acc} = inner(value, acc, settings)
        {{key, value}, acc}
      end)

    {Map.new(pairs), acc}
  end

  defp walk(list, acc, settings) when is_list(list), do: walk_list(list, acc, settings)
  defp walk(other, acc, _settings), do: {other, acc}

  defp walk_list([head | tail], acc, settings) do
    {head, acc} = inner(head, acc, settings)
    {tail, acc} = walk_list(tail, acc, settings)
    {[head | tail], acc}
  end

  # The end, also of a list that is none and that the transport will refuse.
  defp walk_list(rest, acc, _settings), do: {rest, acc}

  defp inner(value, acc, settings) do
    case walk(value, acc, settings) do
      {{@bytes, bytes}, acc} -> {Wire.inline(bytes, []), acc}
      walked -> walked
    end
  end

  # -- sharing --------------------------------------------------------------------------------

  defp share(data, options, acc, settings) do
    bytes = IO.iodata_length(data)
    if handle?(bytes, settings), do: attempt(data, bytes, options, acc, settings), else: :plain
  end

  defp handle?(0, _settings), do: false
  defp handle?(_bytes, %{way: :plain}), do: false
  defp handle?(bytes, %{way: :handle, threshold: threshold}), do: bytes * 4 >= threshold
  defp handle?(bytes, %{threshold: threshold}), do: bytes >= threshold

  defp attempt(data, bytes, options, acc, settings) do
    started = System.monotonic_time()
    options = options ++ [owner: settings.owner, session: settings.session]

    case SharedMemory.share(data, options ++ Settings.place(settings)) do
      {:ok, handle} ->
        Telemetry.zero_copy(:export, System.monotonic_time() - started, bytes, about(settings))
        shared = [handle | acc.shared]
        Process.put(acc.noted, shared)
        {:ok, handle, %{acc | shared: shared}}

      {:error, error} ->
        Fallback.note(settings, :arguments, error.code, bytes, Exception.message(error))
        :plain
    end
  end

  defp about(settings), do: Map.take(settings, [:pool, :command])
end
