Code.require_file("worker.exs", __DIR__)

defmodule Interop.WorkersTest do
  @moduledoc false
  # Python workers that share results and fill regions of ours: whose they are, in every order of deaths.

  use Snakepit.SharedMemory.Case, async: false

  alias Interop.Worker
  alias Snakepit.SharedMemory.{Foreign, Listener, Transport}

  @moduletag :interop
  @moduletag timeout: 7_200_000

  @array %{"dtype" => "<f8", "shape" => [64, 64], "fill" => 1.5}
  @bytes :binary.copy(<<1.5::float-64-little>>, 64 * 64)

  def run(_event, _measurements, _metadata, fun), do: fun.()

  # What a pool keeps is nobody's value.
  defp files(dir), do: Enum.reject(TestDir.leftovers(dir), &(&1 =~ ".pool."))
  defp gone?(dir), do: eventually(fn -> files(dir) == [] end)
  defp clean(place), do: SharedMemory.cleanup_regions!([grace: 0] ++ place)

  # In the application's own namespace, whose memory goes to its pool, and comes from it.
  defp with_worker(place, options \\ [], fun) do
    with_config(options ++ [pool_max_bytes: 64 * 1024 * 1024] ++ place, fn ->
      worker = Worker.start(place)

      try do
        fun.(worker)
      after
        Worker.kill(worker)
        clean(place)
      end
    end)
  end

  defp shared!(worker, fields \\ %{}) do
    assert %{"handle" => handle} = Worker.ask(worker, "share", Map.merge(@array, fields))
    handle
  end

  defp info(handle), do: SharedMemory.get_region_info!(handle)

  describe "a result that a worker has given away" do
    test "is the fetching process's own", %{place: place, dir: dir} do
      with_worker(place, fn worker ->
        handle = shared!(worker)
        assert %{orphaned: true} = info(handle)
        {bytes, owner} = in_process(fn -> SharedMemory.fetch!(handle, tags: ["result"]) end)
        assert bytes == @bytes
        assert %{orphaned: false, owner_pid: ^owner, tags: ["result"]} = info(handle)
        assert SharedMemory.stats!().active_regions == 1
        # Others look at it, and it stays that process's.
        assert SharedMemory.fetch!(handle) == @bytes
        assert %{owner_pid: ^owner} = info(handle)
        kill(owner)
        assert gone?(dir)
        assert code(SharedMemory.fetch(handle)) == :not_found
        assert bytes == @bytes
      end)
    end

    test "goes as its new owner says", %{place: place, dir: dir} do
      with_worker(place, fn worker ->
        handle = shared!(worker)
        assert SharedMemory.fetch!(handle, timeout: 50) == @bytes
        assert gone?(dir)

        handle = shared!(worker)

        {_, fetched} =
          in_process(fn -> SharedMemory.fetch!(handle, session: "s", owner: self()) end)

        assert {:ok, %{removed: [_]}} = SharedMemory.release_session("s")
        kill(fetched)

        handle = shared!(worker)
        bytes = SharedMemory.fetch!(handle)
        SharedMemory.deallocate_region!(handle)
        assert gone?(dir)
        assert bytes == @bytes
        assert code(SharedMemory.deallocate_region(handle)) == :not_found
      end)
    end

    test "sends its memory back to the worker", %{place: place, dir: dir} do
      with_worker(place, fn worker ->
        inodes =
          for _ <- 1..6 do
            handle = shared!(worker, %{"shape" => [512, 512]})
            [file] = dir |> Path.join("*_#{handle["name"]}_*") |> Path.wildcard()
            %{inode: inode} = File.stat!(file)
            SharedMemory.fetch!(handle)
            :erlang.garbage_collect()
            SharedMemory.deallocate_region!(handle)
            inode
          end

        # Two where the binary that was collected is still let go of when the worker wants the memory.
        assert length(Enum.uniq(inodes)) <= 2
        assert SharedMemory.stats!().pool.idle == 0
      end)
    end

    test "is left alone by adopt: false, and taken by the next", %{place: place, dir: dir} do
      with_worker(place, fn worker ->
        handle = shared!(worker)
        assert SharedMemory.fetch!(handle, adopt: false) == @bytes
        assert %{orphaned: true} = info(handle)
        assert SharedMemory.fetch!(handle) == @bytes
        assert %{orphaned: false} = info(handle)
        SharedMemory.deallocate_region!(handle)
        assert gone?(dir)
      end)
    end

    test "waits on when a limit refuses it", %{place: place, dir: dir} do
      with_worker(place, [max_regions: 1], fn worker ->
        id = SharedMemory.allocate_region!(4096)
        handle = shared!(worker)
        assert code(SharedMemory.fetch(handle)) == :resource_exhausted
        assert SharedMemory.fetch!(handle, adopt: false) == @bytes
        SharedMemory.deallocate_region!(id)
        assert SharedMemory.fetch!(handle) == @bytes
        SharedMemory.deallocate_region!(handle)
        assert gone?(dir)
      end)
    end

    test "is removed when it has been copied", %{place: place, dir: dir} do
      with_worker(place, fn worker ->
        buffer = SharedMemory.buffer!(64 * 1024)
        assert SharedMemory.fetch!(shared!(worker), into: buffer) == @bytes
        assert gone?(dir)

        id = SharedMemory.allocate_region!(64 * 1024)
        assert SharedMemory.fetch!(shared!(worker), into: id) == 2
        region = SharedMemory.map_region!(id)
        assert SharedMemory.fetch!(shared!(worker), into: region) == 4
        assert SharedMemory.read!(id) == @bytes

        assert %{dtype: "<f8", shape: [64, 64], format: :numpy} =
                 SharedMemory.get_region_info!(id)

        assert [^id] = Enum.map(SharedMemory.list_regions!(), & &1.id)

        small = SharedMemory.allocate_region!(4096)
        handle = shared!(worker)
        assert code(SharedMemory.fetch(handle, into: small)) == :out_of_bounds
        # Nothing was lost by that.
        assert SharedMemory.fetch!(handle, into: buffer) == @bytes
        for id <- [id, small], do: SharedMemory.deallocate_region!(id)
        assert gone?(dir)
      end)
    end

    test "is not removed when somebody has taken it while it was copied", context do
      %{place: place, dir: dir} = context

      with_worker(place, fn worker ->
        handle = shared!(worker)
        %{size: size} = info(handle)
        # Another VM: bare calls of the native library, of which this one knows nothing.
        taken = native(place, handle["name"], %{size: size, slots: 1})
        test = self()
        other_vm = fn -> if self() == test, do: send(test, {:taken, Native.adopt(taken)}) end
        event = [:snakepit, :shared_memory, :region, :write, :start]
        Listener.attach("other-vm", [event], &__MODULE__.run/4, other_vm)

        id = SharedMemory.allocate_region!(64 * 1024)
        assert SharedMemory.fetch!(handle, into: id) == 2
        assert_received {:taken, {:ok, writer}}
        assert SharedMemory.fetch!(handle) == @bytes
        assert %{orphaned: false, owner_pid: nil} = info(handle)
        {:ok, :ok} = Native.discard(writer)
        SharedMemory.deallocate_region!(id)
        assert gone?(dir)
      end)
    end

    test "goes after its ttl when nobody fetches it, though the worker is long dead", context do
      %{place: place, dir: dir} = context

      with_config([grace: 3_600_000] ++ place, fn ->
        worker = Worker.start(place)
        long = shared!(worker)
        short = shared!(worker, %{"ttl" => 0.2})
        Worker.kill(worker)
        # Not by fetching it: who looks at it keeps it.
        names = fn -> Enum.map(SharedMemory.list_regions!(), & &1.id) end
        assert eventually(fn -> names.() == [long["name"]] end)
        assert code(SharedMemory.fetch(short)) == :not_found
        assert SharedMemory.fetch!(long) == @bytes
        SharedMemory.deallocate_region!(long)
        assert gone?(dir)
      end)
    end

    test "is taken by one of several who fetch it at once, and all have it", %{place: place} do
      with_worker(place, fn worker ->
        for _ <- 1..10 do
          handle = shared!(worker)
          fetch = fn -> {SharedMemory.fetch!(handle), self()} end
          answers = for _ <- 1..8, do: in_process(fetch)
          assert Enum.all?(answers, fn {{bytes, _pid}, _owner} -> bytes == @bytes end)
          assert %{owner_pid: owner} = info(handle)
          assert owner in Enum.map(answers, &elem(&1, 1))
          for {_answer, pid} <- answers, do: kill(pid)
        end

        assert eventually(fn -> SharedMemory.list_regions!() == [] end)
      end)
    end
  end

  test "what a worker keeps is not taken, nor removed", %{place: place, dir: dir} do
    with_worker(place, fn worker ->
      handle = shared!(worker, %{"transfer" => false})
      assert SharedMemory.fetch!(handle) == @bytes
      assert code(SharedMemory.fetch(handle, adopt: true)) == :segment_busy
      buffer = SharedMemory.buffer!(64 * 1024)
      assert SharedMemory.fetch!(handle, into: buffer) == @bytes
      assert %{orphaned: false, owner_pid: nil} = info(handle)
      # Left behind by its death, it can be taken.
      Worker.kill(worker)
      assert SharedMemory.fetch!(handle, adopt: true) == @bytes
      assert %{owner_pid: owner} = info(handle)
      assert owner == self()
      SharedMemory.deallocate_region!(handle)
      assert gone?(dir)
    end)
  end

  test "types and orders of numpy come as what they are", %{place: place} do
    with_worker(place, fn worker ->
      found = Worker.ask(worker, "dtypes")

      for {key, dtype, shape, bytes} <- [
            {"bool", "|b1", [2], <<1, 0>>},
            {"f2", "<f2", [3], for(n <- 0..2, into: <<>>, do: <<n::float-16-little>>)},
            {"c8", "<c8", [1], <<1::float-32-little, 2::float-32-little>>},
            {"big", ">i4", [3], <<0::32, 1::32, 2::32>>},
            {"time", "<M8[D]", [1], <<20_455::64-little>>},
            # As it lies there: the first index runs fastest, which the handle says.
            {"fortran", "<i4", [2, 3],
             for(n <- [0, 3, 1, 4, 2, 5], into: <<>>, do: <<n::32-little>>)},
            {"scalar", "<f8", [], <<2.5::float-64-little>>}
          ] do
        handle = found[key]
        assert {key, handle["dtype"], handle["shape"]} == {key, dtype, shape}
        assert handle["order"] == if(key == "fortran", do: "F")
        assert SharedMemory.fetch!(handle) == bytes
        SharedMemory.deallocate_region!(handle)
      end
    end)
  end

  test "an array in Fortran's order is copied, and comes through the bridge, in C's", context do
    with_worker(context.place, fn worker ->
      rows = for n <- 0..5, into: <<>>, do: <<n::32-little>>

      fortran = fn ->
        {handle, others} = Map.pop!(Worker.ask(worker, "dtypes"), "fortran")
        for {_type, other} <- others, do: SharedMemory.deallocate_region!(other)
        handle
      end

      assert %{"order" => "F", "shape" => [2, 3]} = handle = fortran.()
      id = SharedMemory.allocate_region!(4096)
      assert SharedMemory.fetch!(handle, into: id) == 2
      assert SharedMemory.read!(id) == rows
      assert %{dtype: "<i4", shape: [2, 3]} = SharedMemory.get_region_info!(id)

      handle = fortran.()
      tool = fn _args, _opts -> {:ok, %{"a" => handle}} end
      assert Transport.call(%{}, [], tool) == {:ok, %{"a" => rows}}
      # Who gets the handle is told.
      answer = Transport.call(%{}, [], fn _, _ -> {:ok, fortran.()} end, resolve: false)
      assert {:ok, %{"order" => "F"} = handle} = answer
      for region <- [handle, id], do: SharedMemory.deallocate_region!(region)
    end)
  end

  test "a VM that is killed after its fetch leaves the result for its grace", context do
    %{place: place, dir: dir} = context
    worker = Worker.start(place)
    handle = shared!(worker)
    Worker.kill(worker)
    peer = Foreign.start([grace: 100] ++ place)
    code = "{:ok, b} = Snakepit.SharedMemory.fetch(#{inspect(handle)}); byte_size(b)"
    assert Foreign.run(peer, code) == byte_size(@bytes)
    # It is that VM's, whatever its ttl was.
    assert %{removed: []} = clean(place)
    Foreign.kill(peer)
    assert %{removed: [_]} = clean(place)
    assert gone?(dir)
  end

  describe "a worker that is killed" do
    for step <- ["asked", "shared"] do
      @step step
      test "between its share and its reply (#{step}) leaves nothing", context do
        %{place: place, dir: dir} = context

        with_config([grace: 100] ++ place, fn ->
          worker = Worker.start(place)
          fields = Map.merge(@array, %{"ttl" => 0.3, "stop" => @step})
          assert Worker.ask(worker, "share", fields) == %{"at" => @step}
          if @step == "shared", do: assert(files(dir) != [])
          Worker.kill(worker)
          assert gone?(dir)
        end)
      end
    end
  end

  # -- in place -------------------------------------------------------------------------------

  describe "a region that is lent to a worker" do
    defp lent!(options \\ []) do
      id = SharedMemory.allocate_region!(1024 * 1024, [slots: 1] ++ options)
      {id, SharedMemory.lend_region!(id, dtype: :f64, shape: [131_072])}
    end

    defp filled?(bytes), do: bytes == :binary.copy(<<2.5::float-64-little>>, 131_072)

    test "is filled in place and fetched without a copy", %{place: place, dir: dir} do
      with_worker(place, fn worker ->
        {id, loan} = lent!()
        file = file_of(id, place)
        inode = File.stat!(file).inode

        assert %{"handle" => handle} =
                 Worker.ask(worker, "borrow", %{"loan" => loan, "fill" => 2.5})

        assert handle["token"] == loan["token"]
        :erlang.garbage_collect()
        before = :erlang.memory(:binary)
        bytes = SharedMemory.fetch!(handle)
        assert :erlang.memory(:binary) - before < 100_000
        assert filled?(bytes)
        assert File.stat!(file).inode == inode
        assert Enum.any?(mappings(dir), &(&1 =~ file))
        # It has been ours all the time.
        assert %{owner_pid: owner, orphaned: false} = info(handle)
        assert owner == self()
        assert SharedMemory.list_regions!() |> Enum.map(& &1.id) == [id]
        SharedMemory.deallocate_region!(id)
        assert gone?(dir)
      end)
    end

    for step <- ["asked", "borrowed", "half", "filled"] do
      @step step
      test "and is killed (#{step}): it is lent again, and the next one fills it", context do
        %{place: place, dir: dir} = context

        with_worker(place, fn worker ->
          {id, loan} = lent!()
          first = Worker.start(place)
          fields = %{"loan" => loan, "fill" => 1, "stop" => @step}
          assert Worker.ask(first, "borrow", fields) == %{"at" => @step}

          if @step != "asked" do
            assert code(SharedMemory.take_back_region(id)) == :segment_busy
            assert code(SharedMemory.lend_region(id)) == :segment_busy
            again = Worker.ask(worker, "borrow", %{"loan" => loan, "fill" => 2})
            assert again == %{"error" => "segment_busy"}
          end

          Worker.kill(first)
          # Nobody removes what is ours.
          assert %{removed: []} = clean(place)
          again = SharedMemory.lend_region!(id)
          assert again["token"] == loan["token"]
          fields = %{"loan" => loan, "fill" => 2.5}
          assert %{"handle" => handle} = Worker.ask(worker, "borrow", fields)
          assert filled?(SharedMemory.fetch!(handle))
          SharedMemory.deallocate_region!(handle)
          assert gone?(dir)
        end)
      end
    end

    test "and is killed when it had sealed it: the value is there", %{place: place, dir: dir} do
      with_config(place, fn ->
        {id, loan} = lent!()
        worker = Worker.start(place)
        fields = %{"loan" => loan, "fill" => 2.5, "stop" => "sealed"}
        assert Worker.ask(worker, "borrow", fields) == %{"at" => "sealed"}
        Worker.kill(worker)
        clean(place)
        assert filled?(SharedMemory.binary!(id))
        assert SharedMemory.take_back_region!(id) == id
        assert code(SharedMemory.lend_region(id)) == :sealed
        assert filled?(SharedMemory.fetch!(SharedMemory.handle!(id)))
        SharedMemory.deallocate_region!(id)
        assert gone?(dir)
      end)
    end

    test "is not idle while the worker fills it", %{place: place, dir: dir} do
      with_config(place, fn ->
        worker = Worker.start(place)
        # Long enough for it to come.
        {id, loan} = lent!(timeout: 2_000)
        fields = %{"loan" => loan, "fill" => 1, "stop" => "half"}
        assert Worker.ask(worker, "borrow", fields) == %{"at" => "half"}
        # Another of the same timeout, which is over before.
        idle = SharedMemory.allocate_region!(4096, timeout: 2_000)
        there? = fn id -> match?({:ok, _}, SharedMemory.get_region_info(id)) end
        assert eventually(fn -> not there?.(idle) end)
        assert there?.(id)
        assert code(SharedMemory.take_back_region(id)) == :segment_busy
        findings = SharedMemory.health_check!().findings
        refute Enum.any?(findings, &(&1.check in [:segments, :orphans]))
        Worker.kill(worker)
        # Now nobody uses it any more.
        assert gone?(dir)
      end)
    end

    for step <- ["published", "kept"] do
      @step step
      test "and is killed (#{step}) while it has the writer's place", context do
        %{place: place, dir: dir} = context

        with_config(place, fn ->
          {id, loan} = lent!()
          worker = Worker.start(place)
          fields = %{"loan" => loan, "fill" => 7, "stop" => @step}
          assert Worker.ask(worker, "step_down", fields) == %{"at" => @step}
          assert code(SharedMemory.take_back_region(id)) == :segment_busy
          assert SharedMemory.read!(id) == <<7, 7, 7, 7>>
          Worker.kill(worker)
          assert SharedMemory.take_back_region!(id) == id
          if @step == "published", do: assert(SharedMemory.seal!(id) == 2)
          assert SharedMemory.binary!(id) == <<7, 7, 7, 7>>
          SharedMemory.deallocate_region!(id)
          assert gone?(dir)
        end)
      end
    end

    test "and fails: it can be lent again at once", %{place: place, dir: dir} do
      with_worker(place, fn worker ->
        {id, loan} = lent!()
        fields = %{"loan" => loan, "fill" => 1, "raise" => true}
        assert Worker.ask(worker, "borrow", fields) == %{"error" => "ArithmeticError"}
        assert SharedMemory.take_back_region!(id) == id
        assert SharedMemory.write!(id, "ours") == 2
        SharedMemory.deallocate_region!(id)
        assert gone?(dir)
      end)
    end

    test "goes when it is deallocated or its owner dies, under the worker's hands", context do
      %{place: place, dir: dir} = context

      with_worker(place, fn worker ->
        for ending <- [:deallocate, :owner_dies] do
          {{id, loan}, owner} = in_process(fn -> lent!() end)
          Worker.tell(worker, "borrow", %{"loan" => loan, "fill" => 1, "stop" => "no such step"})
          assert %{"handle" => handle} = Worker.answer(worker)
          if ending == :deallocate, do: SharedMemory.deallocate_region!(id), else: kill(owner)
          assert gone?(dir)
          assert code(SharedMemory.fetch(handle)) == :not_found
          if ending == :deallocate, do: kill(owner)

          {{id, loan}, owner} = in_process(fn -> lent!() end)
          busy = Worker.start(place)
          fields = %{"loan" => loan, "fill" => 1, "stop" => "half"}
          assert Worker.ask(busy, "borrow", fields) == %{"at" => "half"}
          if ending == :deallocate, do: SharedMemory.deallocate_region!(id), else: kill(owner)
          assert gone?(dir)
          Worker.kill(busy)
          if ending == :deallocate, do: kill(owner)
          clean(place)
        end
      end)
    end

    test "is the next VM's to take when this one dies", %{place: place, dir: dir} do
      worker = Worker.start(place)
      peer = Foreign.start([grace: 100] ++ place)

      lend = """
      id = Snakepit.SharedMemory.allocate_region!(4096, slots: 1)
      Snakepit.SharedMemory.lend_region!(id, dtype: :u8, shape: [4])
      """

      loan = Foreign.run(peer, lend)
      Foreign.kill(peer)
      # Within the grace the worker still fills it, and whoever has the handle may have it.
      answer = Worker.ask(worker, "borrow", %{"loan" => loan, "fill" => 3})
      assert %{"handle" => handle} = answer
      assert SharedMemory.fetch!(handle, place) == <<3, 3, 3, 3>>
      SharedMemory.deallocate_region!(handle, place)
      Worker.kill(worker)
      clean(place)
      assert gone?(dir)
    end
  end

  # -- lives ----------------------------------------------------------------------------------

  # SNAKEPIT_WORKER_LIVES=1000 by `make faults`.
  @lives String.to_integer(System.get_env("SNAKEPIT_WORKER_LIVES", "30"))

  @tag :lives
  test "workers' lives: nothing is left, and nothing lost that was fetched", context do
    %{place: place, dir: dir} = context
    with_config([grace: 200] ++ place, fn -> Enum.each(1..@lives, &live(&1, place)) end)
    assert eventually(fn -> clean(place) && files(dir) == [] end)
  end

  # Started, asked for results one after another, and killed at a random moment of that.
  defp live(n, place) do
    :rand.seed(:exsss, {n, 6, 2026})
    worker = Worker.start(place)
    fill = :rand.uniform(255)
    data = :binary.copy(<<fill>>, 100_000)
    request = %{"dtype" => "|u1", "shape" => [100_000], "fill" => fill, "ttl" => 0.3}
    first = Worker.ask(worker, "share", request)["handle"]
    kept = SharedMemory.fetch!(first)

    for _ <- 1..3, do: Worker.tell(worker, "share", request)
    moment = :rand.uniform(3_000)
    Process.send_after(self(), {:kill, n}, div(moment, 1000))
    receive do: ({:kill, ^n} -> :ok)
    answers = Worker.kill(worker)

    for %{"handle" => handle} <- answers do
      # Whatever has been answered is there, until its time is over.
      case SharedMemory.fetch(handle) do
        {:ok, bytes} ->
          assert bytes == data
          if :rand.uniform(2) == 1, do: SharedMemory.deallocate_region!(handle)
          assert bytes == data

        {:error, error} ->
          assert error.code == :not_found
      end
    end

    assert kept == data

    for region <- SharedMemory.list_regions!(), region.owner_pid == self() do
      SharedMemory.deallocate_region!(region.id)
    end
  end
end
