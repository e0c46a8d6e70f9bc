defmodule Snakepit.SharedMemory.Adoption do
  @moduledoc false
  # A region whose OS process has gone becomes one of this VM, with an owner and all that belongs to
  # it. What is there of it, its value above all, stays as it is.
  #
  # It comes in by the registry's way for new regions: it counts for the limits, and work on its
  # file is a job's. Only that undoing it, whatever goes wrong, leaves the region to the next.

  import Bitwise

  alias Snakepit.SharedMemory.{
    Config,
    Error,
    Lifecycle,
    Native,
    Options,
    Pool,
    Registry,
    Sessions
  }

  alias Snakepit.SharedMemory.{Target, Telemetry}

  @spec adopt(term(), term()) :: {:ok, String.t()} | {:error, Error.t()}
  def adopt(region, opts) do
    Telemetry.span(:adopt, Target.id(region), fn ->
      schema = Lifecycle.bookkeeping_schema()

      with {:ok, options} <- Options.validate(opts, schema, :adopt_region),
           {:ok, target} <- Target.resolve(region, options, :adopt_region),
           {:ok, config} <- Config.fetch(:adopt_region),
           {:ok, seen} <- look(region, target),
           :ok <- Lifecycle.check_size(seen.size, config, :adopt_region),
           {:ok, _writer} <- take(region, target, seen, options, config, :adopt_region) do
        {:ok, target.id}
      end
    end)
  end

  @doc "Takes over what a handle names, which was just opened: as `fetch/2` does."
  @spec take(map(), Target.t(), map(), atom()) :: :ok | {:error, Error.t()}
  def take(handle, target, options, operation) do
    with {:ok, config} <- Config.fetch(operation),
         {:ok, seen} <- look(handle, target),
         :ok <- Lifecycle.check_size(seen.size, config, operation),
         {:ok, _writer} <- take(handle, target, seen, options, config, operation) do
      :ok
    end
  end

  @doc "Makes what this process has taken over already a region of this VM; refused, it is handed back."
  @spec keep(Native.taken(), Target.t(), map(), atom()) :: :ok | {:error, Error.t()}
  def keep(%{size: size, slots: slots} = taken, target, options, operation) do
    with {:ok, config} <- Config.fetch(operation),
         :ok <- Lifecycle.check_size(size, config, operation),
         record = Lifecycle.record(target, {size, slots}, options, config),
         record = %{record | adopted: true, permissions: taken.permissions},
         :ok <- Sessions.note(options, config),
         {:ok, _writer} <- Registry.allocate(record, %{writer: taken.writer}, operation) do
      :ok
    else
      {:error, error} ->
        hand_back(taken)
        {:error, error}
    end
  end

  @doc "Leaves what was taken over to another, who has as much time for it as there was before."
  @spec hand_back(Native.taken()) :: :ok
  def hand_back(%{writer: writer, ttl: ttl}) do
    # A registry that is late may have it, and sees to its end by itself.
    _ = Native.hand_back(writer, ttl)
    :ok
  end

  # A handle stands for one value, not for whatever has its name now.
  defp look(%{"__snakepit_shm__" => _} = handle, target) do
    opened = Native.open_handle(handle, target.dir)
    with {:ok, _} <- Error.wrap(opened, :adopt_region, target.id), do: look(target)
  end

  defp look(_region, target), do: look(target)

  defp look(target) do
    Error.wrap(Native.inspect_segment(Target.native(target)), :adopt_region, target.id)
  end

  defp take(region, target, %{size: size, slots: slots} = seen, options, config, operation) do
    record = %{
      Lifecycle.record(target, {size, slots}, options, config)
      | adopted: true,
        permissions: permissions(Path.join(target.dir, seen.platform_handle.file))
    }

    Sessions.note(options, config)
    settings = %{size: size, slots: slots, pooled: Pool.serves?(config, target)}
    Registry.allocate(record, Map.put(settings, :incarnation, incarnation(region)), operation)
  end

  # Another may have the name by the time that the job comes to it.
  defp incarnation(%{"token" => token}), do: token
  defp incarnation(_region), do: nil

  # Whoever removed the file meanwhile is found out by the job.
  defp permissions(file) do
    case :file.read_file_info(file, [:raw]) do
      {:ok, info} -> elem(info, 7) &&& 0o777
      {:error, _} -> 0o600
    end
  end
end
