defmodule Snakepit.SharedMemory.Supervisor do
  @moduledoc false
  # Jobs start before the registry and end after it: what is under way when the registry goes can
  # still clean up. What they know is in tables of the application (`Application`), so a crash of
  # either costs nobody a region. The others keep nothing that a restart would lose; regions that
  # are still there when they go stay registered by themselves.

  use Supervisor

  alias Snakepit.SharedMemory.{Health, Janitor, Jobs, Membership, Registry, Writers}

  def start_link(config), do: Supervisor.start_link(__MODULE__, config, name: __MODULE__)

  @doc "Ends the children, last first; the jobs are waited for."
  @spec terminate_children(pid()) :: :ok
  def terminate_children(supervisor) do
    Enum.each([Health.Monitor, Writers, Janitor, Membership, Registry, Jobs], fn child ->
      Supervisor.terminate_child(supervisor, Supervisor.child_spec(child, []).id)
    end)
  end

  @impl true
  def init(config) do
    children = [
      Jobs,
      {Registry, config},
      {Membership, config},
      {Janitor, {config, name: Janitor}},
      Writers,
      {Health.Monitor, {config, name: Health.Monitor}}
    ]

    Supervisor.init(children, strategy: :rest_for_one, max_restarts: 10)
  end
end
