defmodule Snakepit.SharedMemory.Bridge do
  @moduledoc """
  Snakepit's calls, with large values by handle instead of by JSON.

  `execute/3`, `execute_in_session/4` and `execute_stream/4` take what Snakepit's functions of these names
  take and answer what they answer. In an application it is one line:

      alias Snakepit.SharedMemory.Bridge, as: Snakepit

  In such a module Snakepit's own modules are written `Elixir.Snakepit.Pool`, and this library's in full as well.

  On the other side a tool needs the decorator of `snakepit_shm.snakepit`, or its adapter the mix-in, for
  else it gets the handles themselves. The guide `docs/guides/snakepit.md` has both sides of an example.

  ## What travels how

  | argument | at or over the threshold | below it |
  |---|---|---|
  | a binary, also inside maps and lists | by handle; a `str` in Python if it is UTF-8, else a `memoryview` | in JSON if it is UTF-8, else beside it (`:binary_parameters`), or in base64 where it is further inside |
  | `value/2` without a dtype, and what is in `:binary_parameters` | by handle; a `memoryview` | beside the JSON, or in base64 |
  | `value/2` with a dtype, an `Nx` tensor | by handle; a numpy array | in base64; a numpy array |
  | a handle of your own | as it is; what it names | |

  What the tool returns comes back as `Snakepit.SharedMemory.fetch/2` gives it, as binaries: `bytes`, arrays, text over the
  worker's threshold, tables as Arrow IPC streams; arrays in C's order, also those that the tool held in Fortran's, which
  costs a copy. With `resolve: false` the handles stay, which tell dtype and shape; their regions then belong to
  the calling process, as does an argument that came back as one. A result that the worker gave away is removed from shared memory
  as it is fetched, unless another process has taken it, and the binary keeps the memory until it is garbage-collected; no limit refuses it.

  ## What becomes of what was shared

  It belongs to the calling process for the time of the call and is released at its end, however it ends; also
  when the caller is killed. With a `:session_id` it belongs to that session too. The worker keeps what it has
  resolved as long as it uses it.

  ## When it does not work

  A value that cannot be shared travels plainly, as it would without this module: `/dev/shm` is full, a limit is
  reached, the application does not run. So do all of a call's values when the worker says that it could not resolve
  them, which it does before the tool is called; the call is then made a second time. Each time there is a line in
  the log, at level warning, and an event `[:snakepit, :shared_memory, :bridge, :fallback]` with the reason. A result that the worker
  could not share comes in base64, with the same line and event. Only a result that was shared and cannot be fetched
  is an error, for the tool has run and is not run again.

  ## The threshold

  `:bridge_threshold` of the configuration, 64 KiB unless set, for each pool. With `:bridge_adaptive`, which is the default,
  it then follows what is measured: of the calls with one argument within a factor of four of the threshold one in sixteen is a
  trial, sent by handle or plainly as chance will have it. Once eight of each way are known, the threshold is halved where
  the median cost per byte of handles is lower by a tenth, and doubled where that of plain transfer is; within 4 KiB and 4 MiB.
  `threshold/1` tells it. `:bridge_pools` sets it for single pools:

      config :snakepit, :shared_memory,
        bridge_pools: %{MyApp.SmallPool => [threshold: 16_384, adaptive: false]}

  ## Without Snakepit

  The transport is `Snakepit`, unless the option `:via` or `:bridge_via` of the configuration names another module that has
  `execute/3`, and `execute_stream/4` where that is used.
  """

  alias Snakepit.SharedMemory.{Dtype, Error, Iodata, Options}
  alias Snakepit.SharedMemory.Bridge.{Arguments, Fallback, Results, Settings, Threshold, Value}
  alias Snakepit.SharedMemory.Bridge.{Wire, ZeroCopy}

  @typedoc """
  Options, besides those of the transport, which are passed on:

    * `:via` - the module that carries the call. Default: `:bridge_via` of the configuration, `Snakepit`
    * `:threshold` - bytes from which a value travels as a handle in this call
    * `:resolve` - `false` leaves handles in the result. Default: `true`
    * `:namespace`, `:dir` - where regions are, as in `Snakepit.SharedMemory.share/2`
  """
  @type options :: keyword()

  @type answer :: {:ok, term()} | {:error, Error.t() | term()}

  @doc """
  Calls a tool, as `Snakepit.execute/3` does.

      iex> defmodule Echo do
      ...>   def execute("echo", %{"text" => sent}, _opts), do: {:ok, sent}
      ...> end
      iex> Snakepit.SharedMemory.Bridge.execute("echo", %{"text" => "small"}, via: Echo)
      {:ok, "small"}
      iex> text = String.duplicate("large", 100_000)
      iex> Snakepit.SharedMemory.Bridge.execute("echo", %{"text" => text}, via: Echo) == {:ok, text}
      true
  """
  @spec execute(String.t(), map(), options()) :: answer()
  def execute(command, args \\ %{}, opts \\ []) do
    call(:execute, command, args, opts, fn via, args, opts -> via.execute(command, args, opts) end)
  end

  @doc "Calls a tool in a session, as `Snakepit.execute_in_session/4` does."
  @spec execute_in_session(String.t(), String.t(), map(), options()) :: answer()
  def execute_in_session(session_id, command, args \\ %{}, opts \\ []) do
    opts = if Keyword.keyword?(opts), do: Keyword.put(opts, :session_id, session_id), else: opts

    call(:execute_in_session, command, args, opts, fn via, args, opts ->
      if function_exported?(via, :execute_in_session, 4),
        do: via.execute_in_session(session_id, command, args, Keyword.delete(opts, :session_id)),
        else: via.execute(command, args, opts)
    end)
  end

  @doc """
  Calls a streaming tool, as `Snakepit.execute_stream/4` does: `callback` gets each chunk, resolved.

  A chunk is removed from shared memory as it is resolved, and that is what the worker waits for when so many are on
  their way (`snakepit_shm.snakepit`, `Flow`). With `resolve: false` the callback gets handles, and removes each
  (`Snakepit.SharedMemory.deallocate_region/2`) when it has done with it, for else the stream stalls. A chunk that is no map is
  under `"data"`. What the callback answers goes to the transport: Snakepit ends the stream at `:halt`. When a chunk cannot be resolved
  the callback gets no more of them, and the answer is that error.
  """
  @spec execute_stream(String.t(), map(), (term() -> term()), options()) ::
          :ok | {:error, Error.t() | term()}
  def execute_stream(command, args \\ %{}, callback, opts \\ []) when is_function(callback, 1) do
    # Chunks may come in another process; what it says after the end is nobody's.
    failed = :erlang.alias()
    stopped = :atomics.new(1, signed: false)

    try do
      answer =
        call(:execute_stream, command, args, opts, fn via, args, opts, settings ->
          via.execute_stream(command, args, &chunk(&1, callback, failed, stopped, settings), opts)
        end)

      # Before the alias ends: with it goes what was sent to it and not received.
      receive do
        {^failed, error} -> {:error, error}
      after
        0 -> answer
      end
    after
      :erlang.unalias(failed)
      flush(failed)
    end
  end

  # What came in between must not stay among the caller's messages.
  defp flush(failed) do
    receive do
      {^failed, _error} -> :ok
    after
      0 -> :ok
    end
  end

  # What the callback answers is for the transport: Snakepit ends a stream at `:halt`. One that does not
  # go by it sends more, which nobody is to see.
  defp chunk(chunk, callback, failed, stopped, settings) do
    if :atomics.get(stopped, 1) == 1 do
      Results.discard(chunk, settings)
      :halt
    else
      case Results.value(chunk, settings) do
        {:ok, value} ->
          callback.(value)

        {:error, error} ->
          :atomics.put(stopped, 1, 1)
          send(failed, {failed, error})
          {:halt, error}
      end
    end
  end

  # -- one call -------------------------------------------------------------------------------

  defp call(operation, command, args, opts, call) do
    with {:ok, settings, theirs} <- Settings.new(command, opts, operation),
         :ok <- check_args(args, operation),
         :ok <- check_via(settings.via, operation) do
      run(args, theirs, settings, send_by(call, settings))
    else
      {:error, error} -> {:error, Error.Log.note(error)}
    end
  end

  defp send_by(call, settings) when is_function(call, 4),
    do: &call.(settings.via, &1.args, &1.opts, settings)

  defp send_by(call, settings), do: &call.(settings.via, &1.args, &1.opts)

  defp run(args, theirs, settings, send) do
    started = System.monotonic_time()
    prepared = Arguments.prepare(args, theirs, settings)

    try do
      answer = send.(prepared)

      if prepared.shared != [] and Wire.unresolved?(answer) do
        again(args, theirs, settings, send, prepared)
      else
        answer = Results.resolve(answer, settings)
        measure(prepared, settings, answer, System.monotonic_time() - started)
        answer
      end
    catch
      kind, reason ->
        Arguments.release(prepared.shared, settings)
        :erlang.raise(kind, reason, __STACKTRACE__)
    else
      answer ->
        Arguments.release(over(prepared.shared, answer, settings), settings)
        answer
    end
  end

  # An argument that came back as a handle is the caller's as every handle in an answer is.
  defp over(shared, answer, %{resolve: false}) do
    kept = Results.tokens(answer)
    Enum.reject(shared, &(&1["token"] in kept))
  end

  defp over(shared, _answer, _settings), do: shared

  # The tool has not been called yet.
  defp again(args, theirs, settings, send, prepared) do
    bytes = Enum.reduce(prepared.shared, 0, &(&1["bytes"] + &2))
    Fallback.note(settings, :arguments, :unresolved, bytes, "the worker could not resolve it")
    args |> Arguments.plain(theirs, settings) |> send.() |> Results.resolve(settings)
  end

  # From the value here to the result here, sharing and fetching included.
  defp measure(%{trial: {way, bytes}}, settings, {:ok, _value}, took) do
    took = System.convert_time_unit(took, :native, :nanosecond)
    Threshold.observe(settings.pool, settings.configured, way, bytes, took)
  end

  defp measure(_prepared, _settings, _answer, _took), do: :ok

  defp check_args(%{} = args, _operation) when not is_struct(args), do: :ok

  defp check_args(args, operation),
    do: {:error, Options.invalid("arguments", "a map", args, operation)}

  defp check_via(via, operation) do
    {function, arity} = if operation == :execute_stream, do: {operation, 4}, else: {:execute, 3}

    cond do
      not Code.ensure_loaded?(via) ->
        {:error, ZeroCopy.missing("the transport #{inspect(via)} is not loaded", operation)}

      not function_exported?(via, function, arity) ->
        what = "the transport #{inspect(via)} has no #{function}/#{arity}"
        {:error, ZeroCopy.missing(what, operation)}

      true ->
        :ok
    end
  end

  # -- values and references ------------------------------------------------------------------

  @doc """
  Bytes for an argument: not text, whatever is in them, and an array with `:dtype` and `:shape`.

  Options are `:dtype`, `:shape` and `:format` of `Snakepit.SharedMemory.share/2`.

      iex> alias Snakepit.SharedMemory.Bridge
      iex> %Bridge.Value{} = Bridge.value(<<1.0::float-32-little>>, dtype: :f32, shape: [1])
      iex> Bridge.value(:data)
      ** (Snakepit.SharedMemory.Error) invalid data: expected iodata, got: :data; in value; remedy: pass iodata
  """
  @spec value(iodata(), keyword()) :: Value.t()
  def value(data, options \\ []) do
    schema = [
      dtype: {:dtype, nil},
      shape: {:shape, nil},
      format: {{:in, [:raw, :numpy, :arrow_ipc]}, nil}
    ]

    with {:ok, _} <- Options.validate(options, schema, :value),
         :ok <- check_data(data) do
      options =
        for {key, value} <- options, do: {key, if(key == :dtype, do: dtype(value), else: value)}

      %Value{data: data, options: options}
    else
      {:error, error} -> raise error
    end
  end

  defp check_data(data) do
    case Iodata.length(data, :value) do
      {:ok, _bytes} ->
        :ok

      {:error, %{code: :invalid_argument}} ->
        {:error, Options.invalid("data", "iodata", data, :value)}

      {:error, error} ->
        {:error, error}
    end
  end

  defp dtype(dtype) do
    {:ok, text} = Dtype.to_string(dtype)
    text
  end

  @doc """
  The threshold of a pool now, what it was measured from, and how often it has moved.

  `plain` and `handle` are nanoseconds per byte of whole calls around the threshold, the tools' own work included in
  both; `nil` before the first trial. Not adaptive: the threshold alone.

      iex> Snakepit.SharedMemory.Bridge.threshold(MyApp.Pool)
      %{threshold: 65_536, adaptive: true, plain: nil, handle: nil, trials: 0, moves: 0}
  """
  @spec threshold(term()) :: %{
          threshold: pos_integer(),
          adaptive: boolean(),
          plain: float() | nil,
          handle: float() | nil,
          trials: non_neg_integer(),
          moves: non_neg_integer()
        }
  def threshold(pool \\ Snakepit.Pool) do
    configured = Settings.configured(pool)
    known = Threshold.of(pool, configured.threshold)

    %{
      threshold: if(configured.adaptive, do: known.bytes, else: configured.threshold),
      adaptive: configured.adaptive,
      plain: Threshold.cost(known, :plain),
      handle: Threshold.cost(known, :handle),
      trials: length(known.plain) + length(known.handle),
      moves: known.moves
    }
  end

  @doc """
  A `Snakepit.ZeroCopyRef` that carries a handle of ours, where Snakepit is loaded.

  Its kind is `:arrow` for tables and `:dlpack` for all else, its device `:cpu`. The handle lies in its metadata, under
  `"snakepit_shm"`, and survives `Snakepit.ZeroCopyRef.to_map/1` and JSON.
  """
  @spec to_zero_copy_ref(map()) :: {:ok, struct()} | {:error, Error.t()}
  def to_zero_copy_ref(handle), do: noted(ZeroCopy.make(handle))

  @doc """
  The handle that a `Snakepit.ZeroCopyRef` carries, or the map that was made of one.

  What the reference says of the value must agree with the handle.

      iex> {:error, error} = Snakepit.SharedMemory.Bridge.from_zero_copy_ref(%{"__snakepit_zero_copy__" => true})
      iex> error.code
      :invalid_handle
  """
  @spec from_zero_copy_ref(struct() | map()) :: {:ok, map()} | {:error, Error.t()}
  def from_zero_copy_ref(ref), do: noted(ZeroCopy.read(ref))

  defp noted({:error, error}), do: {:error, Error.Log.note(error)}
  defp noted(answer), do: answer
end
