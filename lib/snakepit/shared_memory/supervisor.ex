defmodule Snakepit.SharedMemory.Supervisor do
  @moduledoc false
  # Jobs start before the registry and end after it: what is under way when the registry goes can
  # still clean up. What they know is in tables of the application (`Application`), so a crash of
  # either costs nobody a region. The others keep nothing that a restart would lose; regions that
  # are still there when they go stay registered by themselves.
  #
  # So none needs another to be started again with it: whoever calls one that is on its way back
  # waits for it, and what a job has begun it ends, whatever became of its supervisor.

  use Supervisor

  alias Snakepit.SharedMemory.{Clock, Error, Expiry, Health, Janitor, Jobs, Membership}
  alias Snakepit.SharedMemory.{Reconfiguration, Registry, Writers}
  alias Snakepit.SharedMemory.Telemetry.Outbox

  def start_link(config), do: Supervisor.start_link(__MODULE__, config, name: __MODULE__)

  @doc "Ends the children, last first; the jobs are waited for."
  @spec terminate_children(pid()) :: :ok
  def terminate_children(supervisor) do
    last_first =
      [Clock, Error.Log, Reconfiguration, Health.Monitor, Writers] ++
        [Janitor, Membership, Expiry, Registry, Jobs, Outbox]

    Enum.each(last_first, fn child ->
      Supervisor.terminate_child(supervisor, Supervisor.child_spec(child, []).id)
    end)
  end

  @impl true
  def init(config) do
    children = [
      {Outbox, config},
      Jobs,
      {Registry, config},
      {Expiry, config},
      {Membership, config},
      {Janitor, {config, name: Janitor}},
      Writers,
      {Health.Monitor, {config, name: Health.Monitor}},
      {Reconfiguration, config},
      {Error.Log, config},
      Clock
    ]

    # A restart costs milliseconds and nobody a region; to give up costs all of them.
    Supervisor.init(children, strategy: :one_for_one, max_restarts: 200, max_seconds: 5)
  end
end
