defmodule Snakepit.SharedMemory.Sessions do
  @moduledoc false
  # Regions of sessions and of workers: their end, when it is told and when it is found out.

  require Logger

  alias Snakepit.SharedMemory.{Config, Error, Options, Registry, Table, Telemetry}

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
      if state(config, kind, id) == :active, do: Table.put_lease({kind, id})
    end

    :ok
  end

  @doc "Releases what belongs to sessions and workers that have ended."
  @spec sweep() :: :ok
  def sweep do
    with {:ok, config} <- Config.fetch(:sweep) do
      # The application may stop meanwhile, and each answer may be long in coming.
      for {kind, id} <- Table.leases(),
          match?({:ok, _}, Config.fetch(:sweep)),
          state(config, kind, id) == :ended do
        %{removed: removed} = release_all(kind, id, operation(kind), :sweep)
        Logger.info("shared memory: #{kind} #{id} has ended, #{length(removed)} regions removed")
      end
    end

    :ok
  end

  # The source is others' code.
  defp state(config, kind, id) do
    case kind do
      :session -> config.session_source.session_state(id)
      :worker -> config.session_source.worker_state(id)
    end
  rescue
    error ->
      Logger.warning(
        "shared memory: #{inspect(config.session_source)}: #{Exception.message(error)}"
      )

      :unknown
  catch
    :exit, _ -> :unknown
  end
end
