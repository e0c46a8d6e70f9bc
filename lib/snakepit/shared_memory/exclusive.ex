defmodule Snakepit.SharedMemory.Exclusive do
  @moduledoc false
  # The exclusive right to write, for the time of a function. It is waited for in `Writers` and
  # enforced by the NIF, under the lock that each write takes anyway: so nothing is added to a write
  # by somebody who does not ask for it but one load.

  alias Snakepit.SharedMemory.{Config, Error, Native, Options, Reading, Region, Target}
  alias Snakepit.SharedMemory.{Telemetry, Writers, Writing}

  # A day.
  @longest_ms 24 * 60 * 60 * 1000

  @schema [timeout: {{:integer, 0, @longest_ms}, 5_000}] ++ Target.schema()

  @spec with_writer(term(), term(), term()) :: {:ok, term()} | {:error, Error.t()}
  def with_writer(region, opts, fun) do
    Telemetry.span(:with_writer, Target.id(region), fn ->
      with {:ok, options} <- Options.validate(opts, @schema, :with_writer),
           :ok <- check_fun(fun),
           {:ok, target} <- Target.resolve(region, options, :with_writer),
           {:ok, writer} <- mapped_writer(region, target) do
        enter(region, target, writer, options.timeout, fun)
      end
    end)
  end

  defp check_fun(fun) when is_function(fun, 1), do: :ok

  defp check_fun(other) do
    shown = inspect(other, limit: 5, printable_limit: 60)

    {:error,
     Error.new(:invalid_argument, "not a function of one argument: #{shown}",
       operation: :with_writer,
       remedy: "pass a function that takes the region"
     )}
  end

  # An id stands for whatever writer there is when it is our turn.
  defp mapped_writer(id, _target) when is_binary(id), do: {:ok, nil}
  defp mapped_writer(region, target), do: Writing.writer(region, target, :with_writer)

  defp enter(region, target, writer, timeout, fun) do
    me = self()

    case Writers.holder(target.key) do
      {_key, ^me, _ref, writer, kind} when kind != :asking ->
        run(region, target, writer, kind, fun)

      _ ->
        queue(region, target, writer, timeout, fun)
    end
  end

  defp queue(region, target, writer, timeout, fun) do
    ref = make_ref()

    case Writers.acquire(target, writer, ref, timeout, :with_writer) do
      {:ok, writer, kind} ->
        try do
          run(region, target, writer, kind, fun)
        after
          Writers.release(target.key, ref)
        end

      {:error, error} ->
        {:error, error}

      {:timeout, holder} ->
        {:error, late(holder, target, timeout)}

      {:ended, reason} ->
        {:error, gone(reason, target)}
    end
  end

  defp run(region, target, writer, kind, fun) do
    with {:ok, :ok} <- settle(writer, target) do
      with_region(region, target, writer, kind, &{:ok, fun.(&1)})
    end
  end

  # What another process was writing when we got the right is published first.
  defp settle(writer, target) do
    case Native.settle_writer(writer) do
      {:error, :dirty} ->
        Error.wrap(Native.settle_writer_dirty(writer), :with_writer, target.id)

      answer ->
        Error.wrap(answer, :with_writer, target.id)
    end
  end

  defp with_region(%Region{} = region, _target, _writer, _kind, fun), do: fun.(region)

  defp with_region(_id, target, writer, :held, fun) do
    with {:ok, reader} <- Reading.cached_reader(target, :with_writer),
         {:ok, region} <- region(target, reader, writer) do
      fun.(region)
    end
  end

  defp with_region(_id, target, writer, :taken, fun) do
    attached = Native.attach(Target.native(target))

    with {:ok, reader} <- Error.wrap(attached, :with_writer, target.id) do
      try do
        with {:ok, region} <- region(target, reader, writer), do: fun.(region)
      after
        Native.close_reader(reader)
      end
    end
  end

  defp region(target, reader, writer) do
    with {:ok, info} <- Error.wrap(Native.reader_info(reader), :with_writer, target.id) do
      {:ok,
       %Region{
         id: target.id,
         size: info.capacity,
         namespace: target.namespace,
         dir: target.dir,
         access_mode: :read_write,
         mapped_by: self(),
         ref: make_ref(),
         reader: reader,
         writer: writer
       }}
    end
  end

  # -- errors ---------------------------------------------------------------------------------

  defp late({_key, _pid, _ref, _job, :asking}, target, timeout) do
    Error.new(
      :segment_busy,
      "segment busy: another process writes #{target.id}, and did not give it up within #{timeout} ms",
      region: target.id,
      operation: :with_writer,
      remedy: "wait longer, or have its writer give it up; get_region_info/2 says who that is"
    )
  end

  defp late(holder, target, timeout) do
    who =
      case holder do
        {_key, pid, _ref, _writer, _kind} -> "; process #{inspect(pid)} has it"
        nil -> ""
      end

    Error.new(
      :timeout,
      "the right to write #{target.id} was not to be had within #{timeout} ms#{who}",
      region: target.id,
      operation: :with_writer,
      remedy: "wait longer, hold it for a shorter time, or take several regions in one order"
    )
  end

  defp gone(reason, target) do
    with {:ok, _config} <- Config.fetch(:with_writer) do
      Error.new(:closed, "the queue ended before it answered: #{inspect(reason, limit: 5)}",
        region: target.id,
        operation: :with_writer,
        remedy: "call again; it is restarted, and whoever has the right keeps it"
      )
    else
      {:error, not_running} -> not_running
    end
  end
end
