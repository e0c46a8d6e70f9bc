# A Port, which is a pipe each way with a length before each message, beside regions of ours.
#
# Run by bench/peers/run.py. The program on the other side ($SNAKEPIT_BENCH_ECHO) answers a message
# of the Port with the same bytes or with eight, and a value of a region in the same way with a
# value of its own region.

Code.require_file("figures.exs", __DIR__)

defmodule Bench.Peers.Port do
  @moduledoc false
  alias Bench.Peers.Figures
  alias Snakepit.SharedMemory

  @quick "--quick" in System.argv()
  @sizes if @quick,
           do: [8, 64, 4096, 1_048_576],
           else: [8, 64, 1024, 4096, 65_536, 1_048_576, 16_777_216, 104_857_600]
  @ack 8
  @budget_ns 20_000_000
  @minute 60_000

  def run(dir) do
    for size <- @sizes,
        {what, name, back} <- [
          {"round-trip", "there and back, Elixir", size},
          {"one-way", "there, and 8 bytes back, Elixir", @ack}
        ] do
      value = :binary.copy(:rand.bytes(min(size, 65_536)), max(1, div(size, 65_536)))
      {region, close_region} = region(dir, value, back)
      {message, close_port} = message(value, back)
      pairs = alternate(size, region, message)
      Figures.add(what, name, size, "port", pairs)

      if what == "one-way" do
        {share, close_share} = share(dir, value)
        pairs = alternate(size, share, message)
        Figures.add("one-way-share", "share, and the name through a Port", size, "port", pairs)
        close_share.()
      end

      close_port.()
      close_region.()
    end

    Figures.skip(
      "port, 1 GiB",
      "a Port holds each message in memory several times; left out for time"
    )
  end

  # A value of ours, and then one of theirs, each in its own region.
  defp region(dir, value, back) do
    size = byte_size(value)
    id = SharedMemory.allocate_region!(room(size))
    theirs = "answer-#{System.unique_integer([:positive])}"
    port = open(["regions", dir, id, theirs, "#{size}", "#{back}"])
    "ready" = hear(port)
    answer = SharedMemory.map_region!(theirs)
    {:ok, ref} = SharedMemory.subscribe(theirs)

    once = fn ->
      {:ok, _} = SharedMemory.write(id, value)

      receive do
        {:snakepit_shm, ^ref, {:changed, _, _}} -> :ok
      after
        @minute -> raise "no answer"
      end

      SharedMemory.read!(answer)
    end

    got = once.()
    if back == size, do: ^value = got

    close = fn ->
      {:ok, _} = SharedMemory.unsubscribe(ref)
      SharedMemory.unmap_region!(answer)
      Port.close(port)
      SharedMemory.deallocate_region!(id)
    end

    {once, close}
  end

  # Sealed, its name through a Port; the other side copies it out.
  defp share(dir, value) do
    port = open(["names", dir, "#{byte_size(value)}"])

    once = fn ->
      {:ok, handle} = SharedMemory.share(value)
      Port.command(port, handle["name"])
      <<_::binary-size(@ack)>> = hear(port)
      {:ok, _} = SharedMemory.deallocate_region(handle)
    end

    once.()
    {once, fn -> Port.close(port) end}
  end

  defp message(value, back) do
    port = open(["messages", "#{if back == byte_size(value), do: 0, else: back}"])

    once = fn ->
      Port.command(port, value)
      hear(port)
    end

    got = once.()
    if back == byte_size(value), do: ^value = got
    {once, fn -> Port.close(port) end}
  end

  defp open(args) do
    program = System.get_env("SNAKEPIT_BENCH_ECHO") || raise "use bench/peers/run.py"
    Port.open({:spawn_executable, program}, [:binary, {:packet, 4}, args: ["port" | args]])
  end

  defp hear(port) do
    receive do
      {^port, {:data, data}} -> data
    after
      @minute -> raise "the other side does not answer"
    end
  end

  defp room(size), do: max(4096, div(size + 4095, 4096) * 4096)

  defp alternate(size, ours, theirs) do
    samples = if @quick, do: 5, else: if(size >= 16_777_216, do: 5, else: 15)
    times = max(1, div(@budget_ns, max(1, batch(theirs, 1))))

    for turn <- 1..samples do
      if rem(turn, 2) == 1 do
        first = batch(ours, times)
        {first, batch(theirs, times)}
      else
        first = batch(theirs, times)
        {batch(ours, times), first}
      end
    end
  end

  defp batch(call, times) do
    :erlang.garbage_collect()
    call.()
    start = :erlang.monotonic_time(:nanosecond)
    for _ <- 1..times, do: call.()
    max(1, div(:erlang.monotonic_time(:nanosecond) - start, times))
  end
end

Bench.Peers.Figures.section("port", &Bench.Peers.Port.run/1)
