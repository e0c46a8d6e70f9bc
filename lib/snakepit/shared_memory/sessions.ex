defmodule Snakepit.SharedMemory.Sessions do
  @moduledoc false
  # Regions of sessions and of workers: their end, when it is told and when it is found out.

  require Logger

  alias Snakepit.SharedMemory.{Bounded, Config, Error, Options, Registry, Table}
  alias Snakepit.SharedMemory.Telemetry

  @type kind :: :session | :worker

  @doc "Removes the regions of a session or worker of this node, whatever their policy."
  @spec release(kind(), term(), term()) :: {:ok, map()} | {:error, Error.t()}
  def release(kind, id, opts) do
    operation = operation(kind)

    with {:ok, %{}} <- Options.validate(opts, [], operation),
         {:ok, %{}} <- check(kind, id, operation),
         {:ok, _config} <- Config.fetch(operation) do
      {:ok, release_all(kind, id, operation, :call)}
    end
  end

  defp operation(:session), do: :release_session
  defp operation(:worker), do: :release_worker

  defp check(kind, id, operation) do
    with {:error, error} <- Options.validate([{kind, id}], [{kind, {:string, ""}}], operation) do
      message = String.replace(error.message, "option #{inspect(kind)}", "#{kind} id")
      {:error, %{error | code: :invalid_argument, message: message}}
    end
  end

  defp release_all(kind, id, operation, source) do
    Table.forget_lease({kind, id})
    records = Table.records(&(Map.fetch!(&1, kind) == id and &1.state == :live))

    report =
      records
      |> Enum.sort_by(& &1.target.id)
      |> Enum.reduce(%{removed: [], failed: [], bytes: 0}, &remove(&1, &2, operation))

    Telemetry.released(kind, id, report, source)
    %{report | removed: Enum.reverse(report.removed), failed: Enum.reverse(report.failed)}
  end

  defp remove(%{target: target} = record, report, operation) do
    case Registry.deallocate(target, operation) do
      :ok ->
        %{report | removed: [target.id | report.removed], bytes: report.bytes + record.bytes}

      # Somebody else was first.
      {:error, %{code: :not_found}} ->
        report

      {:error, error} ->
        %{report | failed: [%{id: target.id, error: error} | report.failed]}
    end
  end

  @doc "Notes that a session and a worker are there, so that their end can be noticed."
  @spec note(map(), Config.t()) :: :ok
  def note(options, config) do
    for kind <- [:session, :worker], id = options[kind], not Table.lease?({kind, id}) do
      if ask(config, kind, id) == {:ok, :active}, do: Table.put_lease({kind, id})
    end

    :ok
  end

  @doc "Releases what belongs to sessions and workers that have ended."
  @spec sweep() :: :ok
  def sweep, do: Enum.reduce_while(Table.leases(), :ok, fn lease, :ok -> {look(lease), :ok} end)

  # The application may stop meanwhile, and each answer may be long in coming. A source that does
  # not answer is not asked for all the others as well, but with the next sweep.
  defp look({kind, id}) do
    with {:ok, config} <- Config.fetch(:sweep), {:ok, state} <- ask(config, kind, id) do
      if state == :ended do
        %{removed: removed} = release_all(kind, id, operation(kind), :sweep)
        Logger.info("shared memory: #{kind} #{id} has ended, #{length(removed)} regions removed")
      end

      :cont
    else
      {:error, %Error{}} -> :halt
      {:error, :timeout} -> :halt
      {:error, _failed} -> :cont
    end
  end

  @longest_ms 1_000

  # The source is others' code: it may fail in any way, and hang.
  defp ask(config, kind, id) do
    source = config.session_source

    question = fn ->
      case kind do
        :session -> source.session_state(id)
        :worker -> source.worker_state(id)
      end
    end

    case Bounded.run(question, min(@longest_ms, config.call_timeout)) do
      {:ok, state} when state in [:active, :ended, :unknown] ->
        {:ok, state}

      {:ok, other} ->
        {:error,
         said(source, "it answered #{inspect(other, limit: 5, printable_limit: 60)}", other)}

      {:error, failure} ->
        {:error, said(source, Bounded.said(failure), failure)}
    end
  end

  defp said(source, what, failure) do
    Logger.warning("shared memory: session source #{inspect(source)}: #{what}")
    failure
  end
end
