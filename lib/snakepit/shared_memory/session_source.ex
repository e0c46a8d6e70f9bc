defmodule Snakepit.SharedMemory.SessionSource do
  @moduledoc """
  Who knows which sessions and workers have ended.

  A region may belong to a session and to a worker (`:session` and `:worker` of
  `Snakepit.SharedMemory.allocate_region/2`). The source named by `:session_source` in
  `Snakepit.SharedMemory.Config` is asked now and then; what belongs to one that it once knew to be there
  and now knows to have ended is released, as by `Snakepit.SharedMemory.release_session/2`. Ids that it
  never knew are left alone.

  Asking must not renew a session's lease. Each question is asked in a process of its own: whatever raises,
  throws, exits or takes longer than a second counts as `:unknown`, and is logged.
  """

  @typedoc "Whether it is there; `:unknown` when that cannot be said now."
  @type state :: :active | :ended | :unknown

  @callback session_state(id :: String.t()) :: state()
  @callback worker_state(id :: String.t()) :: state()
end

defmodule Snakepit.SharedMemory.SessionSource.Snakepit do
  @moduledoc false
  # Snakepit's session store and worker registry, where Snakepit is loaded. `session_exists?` looks
  # without touching the session; `get_session` would renew it.

  @behaviour Snakepit.SharedMemory.SessionSource

  @store Snakepit.Bridge.SessionStore
  @workers Snakepit.Pool.Registry

  @impl true
  def session_state(id), do: ask(@store, :session_exists?, id)

  @impl true
  def worker_state(id), do: ask(@workers, :worker_exists?, id)

  # Not running is not an answer.
  defp ask(module, function, id) do
    # It runs only where it is loaded; to look for it on the disk would cost every allocation.
    if function_exported?(module, function, 1) do
      case apply(module, function, [id]) do
        true -> :active
        false -> :ended
        _ -> :unknown
      end
    else
      :unknown
    end
  rescue
    _ -> :unknown
  catch
    :exit, _ -> :unknown
  end
end
