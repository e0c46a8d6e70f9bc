defmodule Snakepit.SharedMemory.SessionsTest do
  # Changes who is asked about sessions, for the whole application.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Listener, SessionSource, Table}

  defmodule Source do
    @moduledoc false
    # What the test says, and who asked.
    @behaviour Snakepit.SharedMemory.SessionSource

    def say(answers), do: :persistent_term.put(__MODULE__, {self(), answers})

    @impl true
    def session_state(id), do: answer({:session, id})
    @impl true
    def worker_state(id), do: answer({:worker, id})

    defp answer(asked) do
      {test, answers} = :persistent_term.get(__MODULE__)
      send(test, {:asked, asked})

      case Map.get(answers, asked, :ended) do
        :raise -> raise "no answer"
        :exit -> exit(:no_answer)
        :throw -> throw(:no_answer)
        :nonsense -> {:ok, :active}
        :hang -> Process.sleep(:infinity)
        state -> state
      end
    end
  end

  defp ids(filter), do: Enum.map(SharedMemory.list_regions!(filter), & &1.id)

  test "R10.2 release_session removes the session's regions, whatever their owner and policy", %{
    place: place,
    dir: dir
  } do
    Listener.attach(self())

    for policy <- [:automatic, :manual, :reference_counted] do
      options = [name: "s-#{policy}", session: "s", cleanup_policy: policy, slots: 1]
      SharedMemory.allocate_region!(4096, options ++ place)
    end

    {_, owner} =
      in_process(fn -> SharedMemory.share!("x", [name: "s-shared", session: "s"] ++ place) end)

    other = SharedMemory.allocate_region!(4096, [session: "t", name: "t"] ++ place)
    plain = SharedMemory.allocate_region!(4096, [name: "z"] ++ place)
    region = SharedMemory.map_region!("s-manual", place)

    assert SharedMemory.release_session("s") ==
             {:ok,
              %{
                removed: ["s-automatic", "s-manual", "s-reference_counted", "s-shared"],
                failed: [],
                bytes: 16_384
              }}

    released = [:snakepit, :shared_memory, :cleanup, :released]

    assert_receive {:event, ^released, %{regions: 4, failed: 0, bytes: 16_384},
                    %{kind: :session, id: "s"}}

    assert ids(place) == [other, plain]
    assert {:ok, "s-manual"} = SharedMemory.unmap_region(region)
    assert %{removed: []} = SharedMemory.release_session!("s")
    kill(owner)
    for id <- [other, plain], do: SharedMemory.deallocate_region!(id, place)
    assert TestDir.leftovers(dir) == []
  end

  test "R10.1 release_worker removes the worker's regions", %{place: place} do
    for n <- 1..3, do: SharedMemory.allocate_region!(4096, [worker: "w", name: "w#{n}"] ++ place)
    SharedMemory.allocate_region!(4096, [worker: "v", session: "w", name: "v"] ++ place)
    assert %{removed: ["w1", "w2", "w3"]} = SharedMemory.release_worker!("w")
    assert ids(place) == ["v"]
    assert ids([worker: "v"] ++ place) == ["v"]
    assert ids([worker: "w"] ++ place) == []
  end

  test "what is no id is a named error" do
    for id <- [nil, :s, 1, <<255>>, ["s"]] do
      assert {:error, %Error{code: :invalid_argument} = error} = SharedMemory.release_session(id)
      assert error.message =~ "invalid session id: expected a string"
      assert error.operation == :release_session
      assert code(SharedMemory.release_worker(id)) == :invalid_argument
    end

    assert code(SharedMemory.release_session("s", grace: 1)) == :invalid_option
    assert_raise Error, fn -> SharedMemory.release_session!(nil) end
    assert_raise Error, fn -> SharedMemory.release_worker!(nil) end
  end

  test "R10.2 a session that has ended takes its regions along, one never known does not", %{
    place: place
  } do
    with_config([session_source: Source, cleanup_interval: 10], fn ->
      Source.say(%{{:session, "s"} => :active, {:worker, "w"} => :active})

      for name <- ["s1", "s2"] do
        SharedMemory.allocate_region!(4096, [name: name, session: "s"] ++ place)
      end

      SharedMemory.allocate_region!(4096, [name: "w1", worker: "w"] ++ place)
      SharedMemory.allocate_region!(4096, [name: "plain", session: "my own"] ++ place)
      assert Enum.sort(Table.leases()) == [session: "s", worker: "w"]

      # Known to be there: asked about, and left.
      for _ <- 1..5, do: assert_receive({:asked, {:session, "s"}}, 10_000)
      assert ids(place) == ["plain", "s1", "s2", "w1"]

      Source.say(%{{:worker, "w"} => :active})
      assert eventually(fn -> ids(place) == ["plain", "w1"] end)
      Source.say(%{})
      assert eventually(fn -> ids(place) == ["plain"] end)
      assert Table.leases() == []
      SharedMemory.deallocate_region!("plain", place)
    end)
  end

  @tag :capture_log
  test "a source that cannot answer ends nothing", %{place: place} do
    with_config([session_source: Source, cleanup_interval: 5], fn ->
      Source.say(%{{:session, "s"} => :active})
      SharedMemory.allocate_region!(4096, [name: "s1", session: "s"] ++ place)

      for state <- [:unknown, :raise, :exit, :throw, :nonsense] do
        Source.say(%{{:session, "s"} => state})
        for _ <- 1..5, do: assert_receive({:asked, {:session, "s"}}, 10_000)
        assert ids(place) == ["s1"]
      end

      SharedMemory.deallocate_region!("s1", place)
    end)

    for state <- [:raise, :exit, :throw, :nonsense] do
      with_config([session_source: Source], fn ->
        Source.say(%{{:session, "s"} => state, {:worker, "w"} => state})
        options = [session: "s", worker: "w"] ++ place
        assert {:ok, id} = SharedMemory.allocate_region(4096, options)
        assert Table.leases() == []
        SharedMemory.deallocate_region!(id, place)
      end)
    end
  end

  @tag :capture_log
  test "a source that hangs holds up an allocation and a sweep for a second, and no end", %{
    place: place
  } do
    settings = [session_source: Source, cleanup_interval: 10, call_timeout: 200]

    with_config(settings, fn ->
      Source.say(%{{:session, "s"} => :active})
      for n <- 1..3, do: Table.put_lease({:session, "other#{n}"})
      SharedMemory.allocate_region!(4096, [name: "s1", session: "s"] ++ place)
      Source.say(Map.new(["s", "t" | for(n <- 1..3, do: "other#{n}")], &{{:session, &1}, :hang}))
      task = Task.async(fn -> SharedMemory.allocate_region(4096, [session: "t"] ++ place) end)
      assert {:ok, {:ok, _id}} = Task.yield(task, 10_000)
      # Neither is the sweep gone for good.
      Source.say(%{})
      assert eventually(fn -> ids(place) == [] end)

      Source.say(%{{:session, "s"} => :active})
      SharedMemory.allocate_region!(4096, [name: "s1", session: "s"] ++ place)
      Source.say(%{{:session, "s"} => :hang})
      assert_receive {:asked, {:session, "s"}}, 10_000
      {us, :ok} = :timer.tc(fn -> Application.stop(:snakepit_shared_memory) end)
      # Whatever was asked had 200 ms.
      assert us < 20_000_000
    end)
  end

  test "a source that is none is refused by name" do
    assert {:error, error} = SharedMemory.reconfigure(session_source: NoSuchSource)
    assert error.code == :invalid_option
    assert error.message =~ "option :session_source: expected a module that can be loaded"
    assert {:error, error} = SharedMemory.reconfigure(session_source: Table)

    assert error.message =~ "expected a module with session_state/1 and worker_state/1"
    assert SharedMemory.reconfigure!(session_source: Source).applied == [:session_source]
    assert SharedMemory.reconfigure!(session_source: SessionSource.Snakepit).applied != []
  end

  describe "Snakepit" do
    test "not loaded: nothing is known" do
      refute Code.ensure_loaded?(Snakepit.Bridge.SessionStore)
      assert SessionSource.Snakepit.session_state("s") == :unknown
      assert SessionSource.Snakepit.worker_state("w") == :unknown
    end

    test "loaded: its store and registry are asked, and never renewed" do
      # The functions that Snakepit has, and those that would renew, which must not be called.
      define(Snakepit.Bridge.SessionStore, [
        quote do
          def session_exists?("here"), do: true
          def session_exists?("busy"), do: exit({:timeout, :session_exists?})
          def session_exists?(_id), do: false
          def get_session(_id), do: raise("renewed")
          def update_session(_id, _fun), do: raise("renewed")
        end
      ])

      define(Snakepit.Pool.Registry, [
        quote do
          def worker_exists?("here"), do: true
          def worker_exists?("odd"), do: :yes
          def worker_exists?(_id), do: false
        end
      ])

      for {id, state} <- [{"here", :active}, {"gone", :ended}, {"busy", :unknown}] do
        assert SessionSource.Snakepit.session_state(id) == state
      end

      for {id, state} <- [{"here", :active}, {"gone", :ended}, {"odd", :unknown}] do
        assert SessionSource.Snakepit.worker_state(id) == state
      end
    end

    defp define(module, body) do
      Module.create(module, body, Macro.Env.location(__ENV__))

      on_exit(fn ->
        :code.delete(module)
        :code.purge(module)
      end)
    end
  end

  test "R7.4 filters by session, worker, tag, size and age", %{place: place} do
    SharedMemory.allocate_region!(4096, [name: "a", session: "s", tags: ["x", "y"]] ++ place)
    SharedMemory.allocate_region!(8192, [name: "b", session: "s", worker: "w"] ++ place)
    SharedMemory.allocate_region!(16_384, [name: "c", tags: ["y"]] ++ place)
    assert ids([session: "s"] ++ place) == ["a", "b"]
    assert ids([session: "none"] ++ place) == []
    assert ids([worker: "w"] ++ place) == ["b"]
    assert ids([tag: "y"] ++ place) == ["a", "c"]
    assert ids([tag: "x", session: "s"] ++ place) == ["a"]
    assert ids([min_size: 8192] ++ place) == ["b", "c"]
    assert ids([max_size: 8192] ++ place) == ["a", "b"]
    assert ids([min_size: 8192, max_size: 8192] ++ place) == ["b"]
    assert ids([older_than: 3_600_000] ++ place) == []
    assert ids([older_than: 0] ++ place) == ["a", "b", "c"]
    assert eventually(fn -> ids([older_than: 20] ++ place) == ["a", "b", "c"] end)
    later = SharedMemory.allocate_region!(4096, [name: "later"] ++ place)
    refute later in ids([older_than: 10_000] ++ place)
  end
end
