# A value from Elixir to a Python worker and back: handles, beside the message alone, a pipe, gRPC and pickle.
#
# Run by bench/peers/run.py. All of them take turns. Ours and the pipe are timed here; gRPC and pickle, which Elixir has
# not without packages of others, between two processes of Python, by the worker (bench/peers/worker.py).

Code.require_file("figures.exs", __DIR__)
Code.require_file("../../examples/demo/json.ex", __DIR__)

defmodule Bench.Peers.Worker do
  @moduledoc false
  alias Bench.Peers.Figures
  alias Snakepit.SharedMemory

  @quick "--quick" in System.argv()
  @sizes if @quick, do: [1_000_000], else: [1_000_000, 10_000_000, 100_000_000]
  @minute 60_000

  def run(dir) do
    worker = open(dir)
    others = open(dir)

    for size <- @sizes do
      value = :binary.copy(<<7>>, size)

      ways = [
        {"lent", fn -> lent(worker, value) end},
        {"given", fn -> given(worker, value) end},
        {"in-place", fn -> in_place(worker, value, "place", &release/1) end},
        {"in-place-kept", fn -> in_place(worker, value, "keep", &release_kept(worker, &1)) end},
        {"bare", fn -> timed(fn -> ask(worker, %{"op" => "bare"}) end, & &1) end},
        {"pipe", fn -> pipe(worker, value) end},
        {"grpc", fn -> elsewhere(others, "grpc", size) end},
        {"pickle", fn -> elsewhere(others, "pickle", size) end}
      ]

      # Once each off the clock: what is used again is there then.
      for {_, way} <- ways, do: way.()
      samples = if @quick, do: 3, else: 15

      taken =
        for turn <- 1..samples do
          ways = if rem(turn, 2) == 1, do: ways, else: Enum.reverse(ways)
          Map.new(ways, fn {name, way} -> {name, way.()} end)
        end

      for {ours, name} <- [
            {"lent", "one copy each way, the result in a region of ours"},
            {"given", "one copy each way, the result in a region of the worker's"},
            {"in-place", "filled in place on both sides, the result becomes ours"},
            {"in-place-kept", "filled in place on both sides, the result stays the worker's"}
          ],
          {what, until, which} <- [
            {ours, "", :there},
            {ours <> "-released", ", until both regions are released", :released}
          ],
          {peer, theirs} <- [
            {"snakepit-bare-message", "bare"},
            {"worker-pipe", "pipe"},
            {"worker-grpc", "grpc"},
            {"worker-pickle", "pickle"}
          ] do
        pairs = Enum.map(taken, &{&1[ours][which], &1[theirs].there})
        Figures.add(what, "Elixir and a Python worker, #{name}#{until}", size, peer, pairs)
      end
    end

    Port.close(worker)
    Port.close(others)
  end

  # One copy into shared memory here, one by the worker into what was lent to it. Both regions go, and their pages
  # come back with the next turn's.
  defp lent(worker, value) do
    timed(
      fn ->
        handle = SharedMemory.share!(value, dtype: :u8)
        region = SharedMemory.allocate_region!(room(byte_size(value)), slots: 1)
        loan = SharedMemory.lend_region!(region, dtype: :u8, shape: [byte_size(value)])
        %{"handle" => back} = ask(worker, %{"op" => "fill", "handle" => handle, "loan" => loan})
        check(SharedMemory.fetch!(back), value)
        [handle, region]
      end,
      &release/1
    )
  end

  # The worker's own region, whose pages come home to it when that has ended.
  defp given(worker, value) do
    timed(
      fn ->
        handle = SharedMemory.share!(value, dtype: :u8)
        %{"handle" => back} = ask(worker, %{"op" => "copy", "handle" => handle})
        check(SharedMemory.fetch!(back), value)
        [handle, back]
      end,
      &release/1
    )
  end

  # Both values are there before the clock starts.
  defp in_place(worker, value, op, release) do
    handle = SharedMemory.share!(value, dtype: :u8)
    %{"ok" => true} = ask(worker, %{"op" => "make", "size" => byte_size(value)})

    timed(
      fn ->
        %{"handle" => back, "seen" => [7, 7]} = ask(worker, %{"op" => op, "handle" => handle})

        check(SharedMemory.fetch!(back), value)
        [handle, back]
      end,
      release
    )
  end

  defp release(regions), do: Enum.each(regions, &SharedMemory.deallocate_region!/1)

  defp release_kept(worker, [handle, _result]) do
    SharedMemory.deallocate_region!(handle)
    %{"ok" => true} = ask(worker, %{"op" => "release"})
  end

  # What the others took ends with the next garbage collection, off the clock.
  defp pipe(port, value) do
    timed(
      fn ->
        Port.command(port, [?R, value])
        <<?R, back::binary>> = hear(port)
        check(back, value)
      end,
      & &1
    )
  end

  defp elsewhere(port, way, size) do
    %{"ns" => ns} = ask(port, %{"op" => "timed", "way" => way, "size" => size})
    %{there: ns, released: ns}
  end

  # The first byte and the last: what lies there was looked at.
  defp check(back, value) do
    true = byte_size(back) == byte_size(value)
    7 = :binary.first(back)
    7 = :binary.last(back)
  end

  # Nanoseconds until the value is there and was looked at, and until what it took is released.
  defp timed(call, release) do
    :erlang.garbage_collect()
    start = :erlang.monotonic_time(:nanosecond)
    taken = call.()
    there = :erlang.monotonic_time(:nanosecond)
    release.(taken)
    released = :erlang.monotonic_time(:nanosecond)
    %{there: max(1, there - start), released: max(1, released - start)}
  end

  defp open(dir) do
    python = System.get_env("SNAKEPIT_BENCH_PEERS_PYTHON") || raise "use bench/peers/run.py"

    Port.open({:spawn_executable, python}, [
      :binary,
      {:packet, 4},
      args: [Path.join(__DIR__, "worker.py")],
      env: [{~c"SNAKEPIT_BENCH_PLACE", String.to_charlist(dir)}]
    ])
  end

  defp ask(port, request) do
    Port.command(port, [?J, Demo.JSON.encode(request)])
    {:ok, answer} = Demo.JSON.decode(hear(port))
    answer
  end

  defp hear(port) do
    receive do
      {^port, {:data, data}} -> data
    after
      @minute -> raise "the worker does not answer"
    end
  end

  defp room(size), do: div(size + 4095, 4096) * 4096
end

# Room for the pages of one turn.
Bench.Peers.Figures.section("workers", [pool_max_bytes: 1_073_741_824], &Bench.Peers.Worker.run/1)
