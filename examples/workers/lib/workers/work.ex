defmodule Workers.Work do
  @moduledoc """
  A piece of work, and the three ways to have it done: values by handle, in JSON as base64, and as bare bytes through
  the pipe. The first two are the same call of `Snakepit.SharedMemory.Bridge`; only the threshold differs.
  """

  alias Snakepit.SharedMemory
  alias Snakepit.SharedMemory.Bridge

  @enforce_keys [:tool, :argument, :data, :options, :prefix]
  defstruct @enforce_keys

  @typedoc "`data` with what describes it, for a tool's argument of that name; `prefix` is its form in the pipe."
  @type t :: %__MODULE__{
          tool: String.t(),
          argument: atom(),
          data: binary(),
          options: keyword(),
          prefix: binary()
        }

  @type way :: :handle | :json | :pipe

  @ways [:handle, :pipe, :json]
  @names %{handle: "handles", json: "JSON, base64", pipe: "a pipe"}

  # More than any value has.
  @never 0x1_0000_0000

  @spec ways() :: [way()]
  def ways, do: @ways

  @spec name(way()) :: String.t()
  def name(way), do: Map.fetch!(@names, way)

  @doc "Work on about so many bytes of data, which a worker makes."
  @spec new(String.t(), pos_integer()) :: t()
  def new("negative", bytes) do
    # One random block, again and again: what is in the bytes is of no account.
    data = :binary.copy(:rand.bytes(1_000_000), div(bytes, 1_000_000))
    work("negative", :values, data, [dtype: :u8, shape: [byte_size(data)]], "")
  end

  def new("blur", bytes) do
    count = max(div(bytes, 360 * 480 * 3), 1)
    {data, shape} = made("make_pictures", %{count: count, height: 360, width: 480, seed: 1})
    work("blur", :pictures, data, [dtype: :u8, shape: shape], prefix(shape))
  end

  def new("spectrum", bytes) do
    {data, shape} = made("make_signals", %{channels: 8, samples: div(bytes, 32), seed: 2})
    work("spectrum", :signals, data, [dtype: :f32, shape: shape], prefix(shape))
  end

  # A row takes 16 bytes.
  def new("aggregate", bytes) do
    {data, _shape} = made("make_sales", %{rows: div(bytes, 16), seed: 3})
    work("aggregate", :sales, data, [format: :arrow_ipc], "")
  end

  defp work(tool, argument, data, options, prefix),
    do: %__MODULE__{tool: tool, argument: argument, data: data, options: options, prefix: prefix}

  defp prefix(shape), do: for(n <- shape, into: <<>>, do: <<n::32>>)

  @doc "What a tool makes, as bytes, and its shape."
  @spec made(String.t(), map()) :: {binary(), [non_neg_integer()]}
  def made(tool, args) do
    {:ok, handle} = Bridge.execute(tool, args, via: Workers, resolve: false)
    {:ok, data} = SharedMemory.fetch(handle)
    # The binary keeps the memory as long as it is used.
    {:ok, _} = SharedMemory.deallocate_region(handle)
    {data, handle["shape"]}
  end

  @doc "Has it done; the result is bytes."
  @spec run(t(), way(), keyword()) :: {:ok, binary()} | {:error, term()}
  def run(work, way, opts \\ [])

  def run(work, :pipe, opts) do
    Workers.raw(work.tool, [work.prefix, work.data], opts)
  end

  def run(work, way, opts) do
    value = Bridge.value(work.data, work.options)
    threshold = if way == :handle, do: 1, else: @never
    opts = [via: Workers, threshold: threshold] ++ opts
    Bridge.execute(work.tool, %{work.argument => value}, opts)
  end
end
