defmodule Snakepit.SharedMemory.Clock do
  @moduledoc false
  # Tells the NIF library the time once a second, which it dates accesses with: a look at the clock
  # in every read would cost a tenth of it. And what was listed is tidied.

  use GenServer

  require Logger

  alias Snakepit.SharedMemory.{Listing, Native, Recorder}

  @tick_ms 1_000

  def start_link(_options), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @impl true
  def init(nil) do
    {:ok, schedule()}
  end

  @impl true
  def handle_info({:timeout, timer, :tick}, timer) do
    # Whether accesses are counted may change while we run.
    if Recorder.on?(), do: :ok = Native.tick()
    :ok = Listing.tidy()
    {:noreply, schedule()}
  end

  def handle_info(message, timer) do
    Logger.warning("shared memory clock: unexpected message: #{inspect(message, limit: 5)}")
    {:noreply, timer}
  end

  @impl true
  def handle_call(message, {pid, _tag}, timer) do
    shown = inspect(message, limit: 5)
    Logger.warning("shared memory clock: unexpected call from #{inspect(pid)}: #{shown}")
    {:reply, {:error, :unexpected}, timer}
  end

  @impl true
  def handle_cast(message, timer), do: handle_info(message, timer)

  defp schedule, do: :erlang.start_timer(@tick_ms, self(), :tick)
end
