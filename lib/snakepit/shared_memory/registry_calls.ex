defmodule Snakepit.SharedMemory.RegistryCalls do
  @moduledoc false
  # What the registry is asked. An exit of it is an answer like any other: each call carries a
  # reference of its own, so that the registry that follows can say what became of it, and a crash
  # in the middle is seen by nobody but the one whose region was being created.

  alias Snakepit.SharedMemory.{Call, Config, Error, Native, Registry, Table, Target}
  alias Snakepit.SharedMemory.Table.Record

  # How long a registry that was killed may take to be back, how long the removal of a segment that
  # it had begun may still take, and between two looks.
  @patience_ms 10_000
  @removal_ms 5_000
  @pause_ms 2

  @doc "Counts the region in, creates its segment with `settings`, and makes it known."
  @spec allocate(Record.t(), map(), atom()) :: {:ok, reference()} | {:error, Error.t()}
  def allocate(record, settings, operation) do
    token = make_ref()
    message = {:allocate, %{record | token: token}, settings, operation, now()}

    case call(message, {:allocated, record.target.key, token}, operation) do
      {:again, :interrupted} ->
        {:error, interrupted(record, operation)}

      {:first, {:late, :untouched, _timeout}} = untouched ->
        plain(untouched, operation)

      {_which, {:late, _how, timeout}} ->
        # A region that nobody was told of must not stay.
        GenServer.cast(Registry, {:abandon, record.target.key, token})
        {:error, given_up(record, timeout, operation)}

      {_which, answer} ->
        answer
    end
  end

  @doc "Forgets a region of this node and removes its segment."
  @spec deallocate(Target.t(), atom()) :: :ok | {:error, Error.t()}
  def deallocate(target, operation) do
    message = {:deallocate, target, operation}
    region = Table.region(target.key)

    case {call(message, message, operation), region} do
      # The registry that we asked first has forgotten it, perhaps without having it removed.
      {{:again, {:error, %{code: :not_found}}}, {:ok, writer, _reader}} ->
        discard(writer, target, operation)

      {{_which, {:late, :under_way, timeout}}, _region} ->
        {:error, still_going(target, timeout, operation)}

      {answer, _region} ->
        plain(answer, operation)
    end
  end

  defp discard(writer, target, operation) do
    case Native.discard(writer) do
      {:ok, :ok} ->
        :ok

      # Its job has it, and goes on.
      {:error, {:closed, _message, _segment, _remedy}} ->
        await_removal(target, deadline(@removal_ms))

      {:error, failure} ->
        {:error, Error.from_native(failure, operation, target.id)}
    end
  end

  # Until nobody finds it any more, or the name is another's.
  defp await_removal(target, deadline) do
    found? = match?({:ok, _}, Native.usage(Target.native(target)))

    if found? and not Table.known?(target.key) and now() < deadline do
      receive do
      after
        @pause_ms -> await_removal(target, deadline)
      end
    else
      :ok
    end
  end

  @doc "Removes a region that nobody uses, if `guard` still holds."
  @spec expire(Target.key(), term()) :: :removed | :kept | {:error, Error.t()}
  def expire(key, guard) do
    case call({:expire, key, guard}, {:expire, key, guard}, :expire) do
      # What was removed is not there to be removed again.
      {:again, :kept} -> if Table.known?(key), do: :kept, else: :removed
      answer -> plain(answer, :expire)
    end
  end

  @doc "Keeps a reader for reads by id, unless there is one."
  @spec put_reader(Target.key(), reference(), atom()) :: boolean() | {:error, Error.t()}
  def put_reader(key, reader, operation), do: idempotent({:put_reader, key, reader}, operation)

  @doc "Forgets the reader for reads by id, unless the region is mapped."
  @spec drop_reader(Target.key()) :: boolean() | {:error, Error.t()}
  def drop_reader(key), do: idempotent({:drop_reader, key}, :expire)

  @doc """
  Notes that the caller holds a mapping; it is given back when the caller dies.

  With a `token` the region must be that one of this node, and still be there.
  """
  @spec map(Target.t(), map(), atom()) :: {:ok, reference()} | :gone | {:error, Error.t()}
  def map(target, %{reader: reader, own_writer: writer, token: token}, operation) do
    ref = make_ref()

    with {:error, error} <-
           idempotent({:map, ref, target.key, self(), reader, writer, token}, operation) do
      # It may have been noted before the registry went for good.
      Table.take_mapping(ref)
      {:error, error}
    end
  end

  @doc "Forgets a mapping of the caller, by its reference or the latest one of a region."
  @spec unmap(reference() | Target.key(), atom()) ::
          {:ok, Table.mapping()} | :not_mapped | {:error, Error.t()}
  def unmap(ref, operation) when is_reference(ref) do
    before = Table.mapping(ref)
    message = {:unmap, ref, self()}

    case {call(message, message, operation), before} do
      {{:again, :not_mapped}, {_ref, _key, pid, _reader, _writer, _token}} when pid == self() ->
        {:ok, before}

      {answer, _before} ->
        plain(answer, operation)
    end
  end

  def unmap(key, operation) do
    case idempotent({:latest_mapping, key, self()}, operation) do
      nil -> :not_mapped
      ref when is_reference(ref) -> unmap(ref, operation)
      {:error, error} -> {:error, error}
    end
  end

  @doc "One more reference of `holder`; answers how many there are of all holders."
  @spec refer(Target.t(), pid() | reference(), atom()) ::
          {:ok, pos_integer()} | {:error, Error.t()}
  def refer(target, holder, operation) do
    pid = if is_pid(holder), do: holder, else: self()
    idempotent({:refer, target, holder, pid, make_ref(), operation}, operation)
  end

  @doc "One reference of `holder` less; answers how many there are of all holders."
  @spec unrefer(Target.t(), pid() | reference(), atom()) ::
          {:ok, non_neg_integer()} | {:error, Error.t()}
  def unrefer(target, holder, operation) do
    token = make_ref()
    message = fn again? -> {:unrefer, target, holder, token, again?, operation} end
    # Asked again, the registry cannot tell what it took already from what never was.
    again = message.(refers?(target, holder))
    plain(call(message.(false), again, operation), operation)
  end

  defp refers?(%{key: key}, holder) do
    Table.reference(key, holder) != nil or
      match?({:ok, %{owned: true, owner_pid: ^holder}}, Table.record(key))
  end

  # -- calls ----------------------------------------------------------------------------------

  defp idempotent(message, operation) do
    plain(call(message, message, operation), operation)
  end

  defp plain({which, {:late, _how, timeout}}, operation) do
    done =
      if which == :first, do: "nothing was done", else: "one that has ended may have begun it"

    {:error,
     Error.new(:timeout, "the registry did not answer within #{timeout} ms; #{done}",
       operation: operation,
       remedy: "call again; if it happens again, see what health_check/1 says"
     )}
  end

  defp plain({_which, answer}, _operation), do: answer

  # `again` is what the next registry is asked when this one ended before it answered.
  defp call(message, again, operation) do
    with {:ok, config} <- Config.fetch(operation),
         true <- Process.whereis(Registry) != self() || :calling_self do
      timeout = config.call_timeout + throttled(message, config)

      attempt(:first, %{
        first: message,
        again: again,
        operation: operation,
        timeout: timeout,
        answered: deadline(timeout),
        back: deadline(@patience_ms)
      })
    else
      # It would wait for its own answer.
      :calling_self -> {:first, {:error, gone(:calling_self, operation)}}
      {:error, not_running} -> {:first, {:error, not_running}}
    end
  end

  # An allocation may have to wait for room first.
  defp throttled({:allocate, _, _, _, _}, %{on_limit: {:throttle, wait}}), do: wait
  defp throttled(_message, _config), do: 0

  # Those two are answered by a job, all others by the callback that takes them.
  defp at_once?({:allocate, _, _, _, _}), do: false
  defp at_once?({:deallocate, _, _}), do: false
  defp at_once?(_message), do: true

  defp attempt(which, call) do
    message = Map.fetch!(call, which)
    left = max(call.answered - now(), 0)

    case Call.request(Registry, message, left, at_once: at_once?(message)) do
      # The one that ended had not begun with it: this one may as well.
      {:ok, :unknown} -> attempt(:first, call)
      {:ok, answer} -> {which, answer}
      # It never got the message.
      {:error, {:ended, :noproc}} -> retry(:noproc, which, call)
      {:error, {:ended, reason}} -> retry(reason, :again, %{call | back: deadline(@patience_ms)})
      {:error, how} -> {which, {:late, how, call.timeout}}
    end
  end

  defp retry(reason, which, call) do
    with {:ok, _config} <- Config.fetch(call.operation),
         true <- now() < call.answered || {which, {:late, :untouched, call.timeout}},
         true <- now() < call.back || {which, {:error, gone(reason, call.operation)}} do
      receive do
      after
        @pause_ms -> attempt(which, call)
      end
    else
      {:error, not_running} -> {which, {:error, not_running}}
      answer -> answer
    end
  end

  defp deadline(patience), do: now() + patience
  defp now, do: System.monotonic_time(:millisecond)

  defp gone(reason, operation) do
    Error.new(:closed, "the registry ended before it answered: #{inspect(reason, limit: 5)}",
      operation: operation,
      remedy: "call again; it is restarted and knows all regions it knew"
    )
  end

  defp given_up(record, timeout, operation) do
    Error.new(:timeout, "the region was not ready within #{timeout} ms, and is given up",
      region: record.target.id,
      operation: operation,
      remedy: "call again, or raise :call_timeout; the memory file system may be slow or full"
    )
  end

  defp still_going(target, timeout, operation) do
    Error.new(:timeout, "the region was not removed within #{timeout} ms; that goes on",
      region: target.id,
      operation: operation,
      remedy: "nobody finds it any more; its memory goes when the work is done"
    )
  end

  defp interrupted(record, operation) do
    done = if record.adopted, do: "adopted", else: "created"

    Error.new(:closed, "the registry ended while the region was being #{done}",
      region: record.target.id,
      operation: operation,
      remedy: "call again; nothing of this attempt stays"
    )
  end
end
