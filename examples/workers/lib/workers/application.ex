defmodule Workers.Application do
  @moduledoc false
  # A pool, and workers that tell it when they are free. When the pool is started anew so are they.

  use Application

  @impl true
  def start(_type, _args) do
    count = Application.get_env(:workers, :count, System.schedulers_online())

    workers =
      for n <- 1..count, do: Supervisor.child_spec({Workers.Worker, n}, id: {Workers.Worker, n})

    # Workers are expected to die: that is what their supervisor is for.
    many = [strategy: :one_for_one, max_restarts: 100, max_seconds: 5]

    supervisor = %{
      id: :workers,
      start: {Supervisor, :start_link, [workers, many]},
      type: :supervisor
    }

    Supervisor.start_link([Workers.Pool, supervisor], strategy: :rest_for_one)
  end
end
