defmodule Demo.Live do
  @moduledoc """
  A live segment: Python writes a value every millisecond, this process is told of each change by a message, reads the
  value and takes its age. Both sides read the same clock, CLOCK_MONOTONIC; that is checked, not assumed.
  """

  alias Demo.{Table, Worker}
  alias Snakepit.SharedMemory, as: SHM

  @name "demo-live"
  @rate 1_000

  @doc "Lets the worker write for so many seconds, and prints the rate and the latency from write to read."
  @spec run(Worker.t(), number()) :: :ok
  def run(worker, seconds) do
    check_clock!(worker)
    request = %{name: @name, rate: @rate, seconds: seconds}
    Worker.call(worker, Map.put(request, :op, "live_open"))
    region = SHM.map_region!(@name)
    subscription = SHM.subscribe!(region)

    Worker.send_request(worker, Map.put(request, :op, "live_run"))

    seen =
      listen(worker, subscription, region, %{last: 0, latencies: [], messages: 0, answer: nil})

    SHM.unsubscribe!(subscription)
    SHM.unmap_region!(region)
    forget(subscription)
    Worker.call(worker, Map.put(request, :op, "live_close"))
    report(seen)
  end

  # Until the worker has said how many it wrote, and the last of them has been read.
  defp listen(
         _worker,
         _subscription,
         _region,
         %{answer: %{"written" => last}, last: last} = seen
       ),
       do: seen

  defp listen(%Worker{port: port} = worker, subscription, region, seen) do
    receive do
      {:snakepit_shm, ^subscription, {:changed, _id, _version}} ->
        listen(worker, subscription, region, take(SHM.read!(region), seen))

      {^port, {:data, _line}} = message ->
        send(self(), message)
        {answer, _bytes} = Worker.answer(worker, 0)
        # The last notice may have come before the answer, or the value with it: look once more.
        listen(worker, subscription, region, take(SHM.read!(region), %{seen | answer: answer}))

      {^port, {:exit_status, status}} ->
        raise "the worker ended with status #{status}; its own message is above"
    after
      30_000 -> raise "no notice of a change for 30 s"
    end
  end

  # A subscription keeps its mapping until it is collected, and a segment goes with its last
  # mapping: let go of the notices that nobody read.
  defp forget(subscription) do
    receive do
      {:snakepit_shm, ^subscription, _event} -> forget(subscription)
    after
      0 -> :erlang.garbage_collect()
    end
  end

  defp take(<<number::64-little, written_at::64-little>>, seen) when number > seen.last do
    age = :os.perf_counter(:nanosecond) - written_at
    %{seen | last: number, latencies: [age | seen.latencies], messages: seen.messages + 1}
  end

  # Notices are joined when they come faster than they are read: this value was taken already.
  defp take(<<_number::64-little, _written_at::64-little>>, seen),
    do: %{seen | messages: seen.messages + 1}

  defp report(%{answer: %{"written" => written, "seconds" => seconds}, latencies: latencies}) do
    percent = fn share -> Table.time(Table.percentile(latencies, share)) end

    Table.print(["written", "rate", "read", "p50", "p90", "p99", "slowest"], [
      [
        "#{written} values",
        "#{round(written / seconds)}/s",
        "#{length(latencies)}",
        percent.(0.5),
        percent.(0.9),
        percent.(0.99),
        Table.time(Enum.max(latencies))
      ]
    ])
  end

  # The worker's reading must lie between two of ours; every other clock is days off.
  defp check_clock!(worker) do
    before = :os.perf_counter(:nanosecond)
    {%{"monotonic_ns" => theirs}, _bytes} = Worker.call(worker, %{op: "clock"})
    later = :os.perf_counter(:nanosecond)

    unless theirs in before..later,
      do:
        raise(
          "the BEAM and Python do not read the same clock: #{before} .. #{theirs} .. #{later}"
        )
  end
end
