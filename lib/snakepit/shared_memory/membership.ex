defmodule Snakepit.SharedMemory.Membership do
  @moduledoc false
  # Holds this VM's registration in the configured namespace, so that creating or attaching the
  # only region does not register it, and ending it not take it out again.

  use GenServer

  require Logger

  alias Snakepit.SharedMemory.Native

  def start_link(config), do: GenServer.start_link(__MODULE__, config, name: __MODULE__)

  @impl true
  def init(config) do
    # So that `terminate/2` is called.
    Process.flag(:trap_exit, true)
    {:ok, config, {:continue, :join}}
  end

  @impl true
  def handle_continue(:join, config) do
    case Native.join(config.namespace, config.dir) do
      {:ok, membership} -> {:noreply, membership}
      {:error, failure} -> {:noreply, unregistered(failure, config)}
    end
  end

  # No reason not to start: perhaps nothing is created here, and each creation says so again.
  defp unregistered({code, message, _segment, remedy}, config) do
    Logger.warning(
      "shared memory: this VM could not register in namespace #{config.namespace} " <>
        "(#{code}): #{message}; remedy: #{remedy}. Each create and attach will try again"
    )

    nil
  end

  @impl true
  def handle_call(message, {pid, _tag}, membership) do
    shown = inspect(message, limit: 5)
    Logger.warning("shared memory membership: unexpected call from #{inspect(pid)}: #{shown}")
    {:reply, {:error, :unexpected}, membership}
  end

  @impl true
  def handle_cast(message, membership), do: handle_info(message, membership)

  @impl true
  def handle_info(message, membership) do
    Logger.warning("shared memory membership: unexpected message: #{inspect(message, limit: 5)}")
    {:noreply, membership}
  end

  @impl true
  def terminate(_reason, membership) when is_reference(membership), do: Native.leave(membership)
  def terminate(_reason, _never_joined), do: :ok
end
