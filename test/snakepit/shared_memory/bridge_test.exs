defmodule Snakepit.SharedMemory.BridgeTest do
  # Against transports made here: what a worker does, Python's tests show (test_snakepit.py), and
  # both together the example (examples/workers/check.exs).
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{Bridge, Listener, Sessions, Telemetry}

  doctest Bridge

  defmodule Via do
    # Does what the test says, with what arrived.
    def execute(command, args, opts), do: run(command, args, opts)

    def execute_stream(command, args, callback, opts) do
      for chunk <- run(command, args, opts), do: callback.(chunk)
      :ok
    end

    defp run(_command, args, opts) do
      {fun, opts} = Keyword.pop!(opts, :tool)
      fun.(args, opts)
    end
  end

  defmodule Sessioned do
    def execute(_command, _args, _opts), do: raise("not this one")

    def execute_in_session(session, command, args, opts),
      do: {:ok, {session, command, args, Keyword.delete(opts, :tool)}}
  end

  defp call(args, place, tool, opts \\ []) do
    opts = Keyword.merge([via: Via, tool: tool, threshold: 1000], opts)
    Bridge.execute("tool", args, opts ++ place)
  end

  # What a worker does with `transfer=True`: a sealed region that nobody writes.
  defp give(data, place, options \\ []) do
    name = "given-#{System.unique_integer([:positive])}"
    {:ok, writer} = Native.create(native(place, name, %{size: 8192}))
    # One that nobody holds any more is dropped, and its region with it.
    Process.put(name, writer)
    descriptor = if options[:dtype], do: {options[:dtype], options[:shape], :numpy}
    {:ok, _} = Native.write(writer, data, descriptor)
    {:ok, _} = Native.seal(writer)
    {:ok, handle} = Native.writer_handle(writer)
    unless options[:keep], do: {:ok, _} = Native.release(writer)
    if options[:ttl], do: wait_for_somebody(name, place)
    {handle, writer}
  end

  # Native calls of this library only release: the time to live is written where the format has it.
  defp wait_for_somebody(name, place) do
    {:ok, file} = :file.open(file_of(name, place), [:read, :write, :raw])
    :ok = :file.pwrite(file, 160, <<60_000_000_000::64-little>>)
    :ok = :file.close(file)
  end

  defp large(byte \\ 255), do: :binary.copy(<<byte>>, 5000)

  describe "arguments" do
    test "over the threshold travel as handles, nested ones too, and are released", %{
      place: place,
      dir: dir
    } do
      text = String.duplicate("é", 700)

      args = %{
        "image" => large(),
        text: text,
        small: "x",
        deep: %{"list" => [1, nil, %{"b" => large(1)}, [text]], "n" => 1.5}
      }

      assert {:ok, :done} =
               call(args, place, fn args, opts ->
                 assert opts == []
                 assert %{"__snakepit_shm_text__" => image} = args["image"]
                 assert SharedMemory.fetch!(image, dir: dir) == large()
                 assert %{"__snakepit_shm_text__" => handle} = args.text
                 assert SharedMemory.fetch!(handle, dir: dir) == text
                 assert args.small == "x"

                 assert [1, nil, %{"b" => %{"__snakepit_shm_text__" => b}}, [t]] =
                          args.deep["list"]

                 assert SharedMemory.fetch!(b, dir: dir) == large(1)
                 assert SharedMemory.fetch!(t["__snakepit_shm_text__"], dir: dir) == text
                 assert args.deep["n"] == 1.5
                 assert length(SharedMemory.list_regions!(place)) == 4
                 {:ok, :done}
               end)

      assert SharedMemory.list_regions!(place) == []
    end

    test "of bytes: beside the JSON, by handle over the threshold, in base64 further inside", %{
      place: place,
      dir: dir
    } do
      bytes = <<0, 255, 128>>
      apart = %{"given" => bytes, "big" => large(), "other" => {:pickle, 1}}
      args = %{a: bytes, deep: [bytes], v: Bridge.value("text, but bytes")}

      {:ok, :done} =
        call(
          args,
          place,
          fn args, opts ->
            assert opts[:binary_parameters] ==
                     %{
                       "given" => bytes,
                       "other" => {:pickle, 1},
                       "a" => bytes,
                       "v" => "text, but bytes"
                     }

            assert opts[:timeout] == 5
            assert %{"big" => %{"__snakepit_shm__" => 1} = handle, deep: [inline]} = args
            assert SharedMemory.fetch!(handle, dir: dir) == large()
            assert %{"__snakepit_shm_inline__" => 1, "format" => "raw", "dtype" => nil} = inline
            assert Base.decode64!(inline["base64"]) == bytes
            assert map_size(args) == 2
            {:ok, :done}
          end,
          binary_parameters: apart,
          timeout: 5
        )
    end

    test "of arrays carry dtype and shape either way", %{place: place} do
      floats = for n <- 1..1000, into: <<>>, do: <<n::float-32-little>>
      array = Bridge.value(floats, dtype: :f32, shape: [10, 100])
      little = Bridge.value(<<1, 2>>, dtype: {:u, 8})

      {:ok, :done} =
        call(%{x: array, y: [little]}, place, fn %{x: handle, y: [inline]}, _opts ->
          assert %{"dtype" => "<f4", "shape" => [10, 100], "format" => "numpy"} = handle

          assert %{"dtype" => "|u1", "shape" => nil, "format" => "numpy", "base64" => "AQI="} =
                   inline

          {:ok, :done}
        end)
    end

    test "that are handles of the caller stay, and what is no value of ours is let be", %{
      place: place
    } do
      handle = SharedMemory.share!(large(), place)
      improper = [large(1) | large(2)]
      date = ~D[2024-02-29]

      {:ok, :done} =
        call(%{h: handle, d: date, i: improper, t: {large()}}, place, fn args, _ ->
          assert %{h: ^handle, d: ^date, t: {_}, i: [%{"__snakepit_shm_text__" => _} | tail]} =
                   args

          assert tail == large(2)
          {:ok, :done}
        end)

      assert SharedMemory.fetch!(handle, dir: place[:dir]) == large()
      SharedMemory.deallocate_region!(handle, dir: place[:dir])
    end

    test "a tensor is an array; without its library it is what it is", %{place: place} do
      tensor = %{__struct__: Nx.Tensor, data: large()}
      assert {:ok, ^tensor} = call(%{t: tensor}, place, fn args, _ -> {:ok, args.t} end)

      body =
        quote do
          def type(_tensor), do: {:u, 8}
          def shape(_tensor), do: {50, 100}
          def to_binary(tensor), do: tensor.data
        end

      Module.create(Nx, body, Macro.Env.location(__ENV__))

      try do
        {:ok, :done} =
          call(%{t: tensor}, place, fn %{t: handle}, _ ->
            assert %{"dtype" => "|u1", "shape" => [50, 100], "bytes" => 5000} = handle
            {:ok, :done}
          end)
      after
        :code.purge(Nx)
        :code.delete(Nx)
        :code.purge(Nx)
      end
    end

    test "are released when the transport raises, throws or exits", %{place: place} do
      for fail <- [fn -> raise "no" end, fn -> throw(:no) end, fn -> exit(:no) end] do
        try do
          call(%{x: large()}, place, fn _args, _opts -> fail.() end)
        catch
          _kind, _reason -> :ok
        end

        assert SharedMemory.list_regions!(place) == []
      end
    end

    test "are released when one of them raises before the call", %{place: place} do
      tool = fn _, _ -> flunk("not called") end

      for broken <- [
            %Bridge.Value{data: :none, options: []},
            %Bridge.Value{data: large(), options: 1}
          ] do
        assert_raise ArgumentError, fn ->
          call(%{a: large(), b: [large(), broken]}, place, tool)
        end

        assert SharedMemory.list_regions!(place) == []
      end

      assert Enum.filter(Process.get_keys(), &match?({Bridge.Arguments, _}, &1)) == []
      # What are no parameters is the transport's to refuse.
      tool = fn args, opts -> {:ok, {map_size(args), opts[:binary_parameters]}} end

      for wrong <- [~D[2024-02-29], [large()]] do
        assert call(%{a: large()}, place, tool, binary_parameters: wrong) == {:ok, {1, wrong}}
      end

      assert SharedMemory.list_regions!(place) == []
    end

    test "are released when the caller is killed in the middle", %{place: place} do
      test = self()

      caller =
        spawn(fn ->
          call(%{x: large()}, place, fn _args, _opts ->
            send(test, :there)
            receive do: (:never -> :ok)
          end)
        end)

      assert_receive :there, 10_000
      assert [%{owner_pid: ^caller}] = SharedMemory.list_regions!(place)
      kill(caller)
      assert eventually(fn -> SharedMemory.list_regions!(place) == [] end)
    end

    test "R10.2 of a call in a session belong to that session", %{place: place} do
      {:ok, :done} =
        Bridge.execute_in_session(
          "s1",
          "tool",
          %{x: large()},
          [
            via: Via,
            threshold: 1000,
            tool: fn _args, opts ->
              assert opts[:session_id] == "s1"
              assert [%{session: "s1"}] = SharedMemory.list_regions!([session: "s1"] ++ place)
              {:ok, :done}
            end
          ] ++ place
        )

      assert {:ok, {"s1", "tool", %{x: "y"}, [pool: P]}} =
               Bridge.execute_in_session("s1", "tool", %{x: "y"}, via: Sessioned, pool: P)

      assert Code.ensure_loaded?(Sessions)
    end
  end

  describe "results" do
    test "come back resolved, nested ones too, and leave nothing", %{place: place} do
      tool = fn _args, _opts ->
        {a, _} = give("one", place)
        {b, _} = give(large(), place)
        {:ok, %{"a" => a, "list" => [1, %{"b" => b}], "plain" => "x"}}
      end

      assert call(%{}, place, tool) ==
               {:ok, %{"a" => "one", "list" => [1, %{"b" => large()}], "plain" => "x"}}

      assert SharedMemory.list_regions!(place) == []
    end

    test "that somebody still owns are looked at and left", %{place: place, dir: dir} do
      mine = SharedMemory.share!("mine", place)
      {foreign, writer} = give("foreign", place, keep: true)
      tool = fn args, _ -> {:ok, [mine, foreign, args.x["__snakepit_shm_text__"]]} end
      assert call(%{x: large()}, place, tool) == {:ok, ["mine", "foreign", large()]}
      assert SharedMemory.fetch!(mine, dir: dir) == "mine"
      assert SharedMemory.fetch!(foreign, dir: dir) == "foreign"
      assert length(SharedMemory.list_regions!(place)) == 2
      SharedMemory.deallocate_region!(mine, dir: dir)
      {:ok, _} = Native.discard(writer)
    end

    test "stay handles with resolve: false, and are then the caller's", %{place: place} do
      {result, caller} =
        in_process(fn ->
          call(%{}, place, fn _, _ -> {:ok, [elem(give("kept", place), 0)]} end, resolve: false)
        end)

      assert {:ok, [%{"__snakepit_shm__" => 1} = handle]} = result
      assert [%{owner_pid: ^caller}] = SharedMemory.list_regions!(place)
      assert SharedMemory.fetch!(handle, dir: place[:dir]) == "kept"
      kill(caller)
      assert eventually(fn -> SharedMemory.list_regions!(place) == [] end)
    end

    test "may name one region more than once", %{place: place} do
      for resolve <- [true, false] do
        tool = fn _, _ ->
          {handle, _} = give(large(), place)
          {:ok, %{"a" => handle, "b" => [handle, %{"__snakepit_shm_text__" => handle}]}}
        end

        assert {:ok, %{"a" => one, "b" => [two, three]}} =
                 call(%{}, place, tool, resolve: resolve)

        assert {two, three} == {one, one}
        if resolve, do: assert(one == large()), else: take(one, place)
        assert SharedMemory.list_regions!(place) == []
      end
    end

    test "may be an argument, which with resolve: false is then the caller's", %{place: place} do
      me = self()

      tool = fn args, _ ->
        send(me, {:other, args.other["__snakepit_shm_text__"]})
        {:ok, %{"back" => args.x}}
      end

      args = %{x: large(), other: large(1)}
      assert {:ok, %{"back" => handle}} = call(args, place, tool, resolve: false)
      assert SharedMemory.fetch!(handle, dir: place[:dir]) == large()
      assert [%{owner_pid: ^me}] = SharedMemory.list_regions!(place)
      take(handle, place)
      # The other one went with the call.
      assert_received {:other, other}
      assert code(SharedMemory.fetch(other, dir: place[:dir])) == :not_found
    end

    defp take(handle, place), do: SharedMemory.deallocate_region!(handle, dir: place[:dir])

    test "are no regions of this VM, and refused by no limit", %{place: place, dir: dir} do
      with_config([max_total_memory: 4096] ++ place, fn ->
        {handle, _} = give(large(), place, ttl: true)
        assert code(SharedMemory.fetch(handle)) == :resource_exhausted
        assert call(%{}, [], fn _, _ -> {:ok, handle} end) == {:ok, large()}
        assert eventually(fn -> SharedMemory.list_regions!() == [] end)
      end)

      assert TestDir.leftovers(dir) |> Enum.all?(&(&1 =~ ".pool."))
    end

    test "that somebody else has taken meanwhile are theirs", %{place: place} do
      {handle, _} = give(large(), place)
      test = self()

      # In the middle of the fetch of the bridge another process is faster.
      faster = fn ->
        if self() == test and Process.put(:faster, true) == nil do
          fetch = fn -> SharedMemory.fetch!(handle, dir: place[:dir], adopt: true) end
          send(test, {:theirs, in_process(fetch)})
        end
      end

      event = [:snakepit, :shared_memory, :region, :fetch, :stop]
      Listener.attach("faster", [event], &__MODULE__.run/4, faster)
      assert call(%{}, place, fn _, _ -> {:ok, handle} end) == {:ok, large()}
      assert_received {:theirs, {bytes, owner}}
      assert bytes == large()
      assert [%{owner_pid: ^owner}] = SharedMemory.list_regions!(place)
      kill(owner)
      assert eventually(fn -> SharedMemory.list_regions!(place) == [] end)
    end

    def run(_event, _measurements, _metadata, fun), do: fun.()

    test "that cannot be fetched are an error, and the others do not stay", %{place: place} do
      tool = fn _, _ ->
        {gone, _} = give("gone", place)
        SharedMemory.deallocate_region!(gone, dir: place[:dir])
        {there, _} = give("there", place)
        {:ok, %{"a" => there, "b" => gone, "c" => elem(give("also", place), 0)}}
      end

      assert code(call(%{}, place, tool)) == :not_found
      assert SharedMemory.list_regions!(place) == []
    end

    test "of the wrong form are refused by name; what only looks like it is plain", %{
      place: place
    } do
      for hostile <- [
            %{"__snakepit_shm__" => 1},
            %{"__snakepit_shm__" => 1, "name" => "../etc", "namespace" => "x"},
            %{"__snakepit_shm_inline__" => 1, "base64" => "%"},
            %{"__snakepit_shm_inline__" => 2, "base64" => ""},
            %{"__snakepit_shm_inline__" => 1}
          ] do
        assert code(call(%{}, place, fn _, _ -> {:ok, [hostile]} end)) == :invalid_handle
      end

      for plain <- [
            %{"__snakepit_shm_text__" => "x"},
            %{"__snakepit_shm_chunk__" => %{}},
            ~D[2024-02-29],
            [1 | 2]
          ] do
        assert call(%{}, place, fn _, _ -> {:ok, plain} end) == {:ok, plain}
      end
    end

    test "that are errors or nothing known pass as they are", %{place: place} do
      for answer <- [{:error, :worker_busy}, {:error, "no"}, :ok, nil, {:ok, nil}] do
        assert call(%{x: large()}, place, fn _, _ -> answer end) == answer
      end
    end
  end

  describe "both ways" do
    # A worker that answers what it got: resolved, and given away anew where it is large.
    defp echoed(%{"__snakepit_shm_text__" => handle}, place), do: echoed(handle, place)

    defp echoed(%{"__snakepit_shm__" => _} = handle, place),
      do: handle |> SharedMemory.fetch!(dir: place[:dir]) |> echoed(place)

    defp echoed(%{"__snakepit_shm_inline__" => 1, "base64" => text}, place),
      do: text |> Base.decode64!() |> echoed(place)

    defp echoed(%{} = map, place), do: Map.new(map, fn {k, v} -> {k, echoed(v, place)} end)
    defp echoed(list, place) when is_list(list), do: Enum.map(list, &echoed(&1, place))

    defp echoed(binary, place) when is_binary(binary) and byte_size(binary) > 30,
      do: binary |> give(place) |> elem(0)

    defp echoed(other, _place), do: other

    defp anything(0), do: Enum.random([nil, true, -1, 2.5, "", "text", binary()])

    defp anything(depth) do
      case :rand.uniform(4) do
        1 -> for _ <- 1..:rand.uniform(3), do: anything(depth - 1)
        2 -> for n <- 1..:rand.uniform(3), into: %{}, do: {"key#{n}", anything(depth - 1)}
        _ -> anything(0)
      end
    end

    defp binary do
      size = Enum.random([1, 19, 20, 21, 30, 31, 100, 5000])
      if :rand.uniform(2) == 1, do: :rand.bytes(size), else: String.duplicate("t", size)
    end

    test "whatever is in it, however deep, comes back as it was", %{place: place} do
      :rand.seed(:exsss, {6, 4, 1})

      for _ <- 1..200 do
        args = for n <- 1..3, into: %{}, do: {"arg#{n}", anything(3)}

        tool = fn got, opts ->
          {:ok, echoed(Map.merge(got, opts[:binary_parameters] || %{}), place)}
        end

        assert call(args, place, tool, threshold: 20) == {:ok, args}
      end

      assert SharedMemory.list_regions!(place) == []
    end

    test "calls of many processes at once", %{place: place} do
      echo = fn args, _opts -> {:ok, echoed(args, place)} end

      1..50
      |> Task.async_stream(fn n ->
        args = %{"x" => String.duplicate("#{n} ", 1000)}
        assert call(args, place, echo) == {:ok, args}
      end)
      |> Stream.run()

      assert SharedMemory.list_regions!(place) == []
    end
  end

  describe "fallback" do
    setup do
      Listener.attach(self())

      Listener.attach(
        "zero-copy",
        for(e <- ~w(export import fallback)a, do: [:snakepit, :zero_copy, e]),
        &Listener.forward/4,
        self()
      )

      :ok
    end

    @event [:snakepit, :shared_memory, :bridge, :fallback]

    test "what cannot be shared travels plainly, with a line and an event", %{place: place} do
      text = String.duplicate("x", 5000)
      place = Keyword.put(place, :dir, "/no/such/directory")

      log =
        capture_log(fn ->
          assert call(%{a: text, b: large(), c: [large()]}, place, fn args, opts ->
                   assert args.a == text
                   assert opts[:binary_parameters] == %{"b" => large()}
                   assert [%{"__snakepit_shm_inline__" => 1}] = args.c
                   {:ok, :done}
                 end) == {:ok, :done}
        end)

      assert log =~ ~s(bridge: an argument of "tool" went plainly \(5000 bytes\))
      assert_receive {:event, @event, %{count: 1, bytes: 5000}, metadata}

      assert %{pool: Snakepit.Pool, command: "tool", direction: :arguments, reason: reason} =
               metadata

      assert reason in Error.codes()

      assert_receive {:event, [:snakepit, :zero_copy, :fallback], %{bytes: 5000},
                      %{reason: ^reason}}
    end

    test "what the worker could not resolve is sent again plainly, once", %{place: place} do
      test = self()

      tool = fn args, opts ->
        send(test, {:call, args, opts})

        if is_map(args[:x]),
          do:
            {:error, %{message: "no", details: ["[snakepit-shm: arguments not resolved] gone"]}},
          else: {:ok, opts[:binary_parameters]["x"]}
      end

      capture_log(fn -> assert call(%{x: large()}, place, tool) == {:ok, large()} end)
      assert_receive {:call, %{x: %{}}, _}
      assert_receive {:call, args, _} when args == %{}
      refute_received {:call, _, _}
      assert_receive {:event, @event, %{bytes: 5000}, %{reason: :unresolved}}

      # Without a handle of ours there is nothing to do better.
      answer = {:error, "[snakepit-shm: arguments not resolved]"}
      assert call(%{x: "small"}, place, fn _, _ -> answer end) == answer
    end

    test "what the worker could not share comes in base64, and is told", %{place: place} do
      inline = fn reason ->
        %{"__snakepit_shm_inline__" => 1, "base64" => Base.encode64(large()), "reason" => reason}
      end

      for {reason, told} <- [
            {"resource_exhausted", :resource_exhausted},
            {"no_such_code_ever", :unknown}
          ] do
        capture_log(fn ->
          assert call(%{}, place, fn _, _ -> {:ok, inline.(reason)} end) == {:ok, large()}
        end)

        assert_receive {:event, @event, %{bytes: 5000}, %{direction: :result, reason: ^told}}
      end

      # Too little to share is no fallback.
      assert call(%{}, place, fn _, _ -> {:ok, inline.(nil)} end) == {:ok, large()}
      refute_received {:event, @event, _, _}
    end

    test "R10.3 Snakepit's own events tell what was exported and imported", %{place: place} do
      call(%{x: large()}, place, fn args, _ -> {:ok, args.x} end, pool: MyPool)
      export = [:snakepit, :zero_copy, :export]
      import_ = [:snakepit, :zero_copy, :import]
      assert_receive {:event, ^export, %{bytes: 5000, duration_ms: ms}, %{pool: MyPool}}
      assert is_float(ms)

      assert_receive {:event, ^import_, %{bytes: 5000},
                      %{command: "tool", subsystem: :shared_memory}}
    end

    test "the table of Snakepit's events names those that are emitted" do
      table = Telemetry |> Code.fetch_docs() |> elem(4) |> Map.fetch!("en")
      named = Regex.scan(~r/^\| `\[:snakepit, :zero_copy, :(\w+)\]`/m, table)
      assert Enum.sort(for [_, name] <- named, do: name) == ~w(export fallback import)
    end

    test "when the application does not run, or is switched off, all goes plainly", %{
      place: place
    } do
      echo = fn args, opts -> {:ok, {args, opts}} end

      log =
        capture_log(fn ->
          with_config([enabled: false], fn ->
            assert {:ok, {%{}, [binary_parameters: %{"x" => _}]}} =
                     call(%{x: large()}, place, echo)
          end)

          :ok = Application.stop(:snakepit_shared_memory)
          assert {:ok, {%{}, [binary_parameters: %{"x" => _}]}} = call(%{x: large()}, place, echo)
          {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
        end)

      assert log =~ "(disabled)"
      assert log =~ "(not_started)"
    end
  end

  describe "streams" do
    defp stream(place, chunks, callback, opts \\ []) do
      tool = fn _args, _opts -> chunks end
      opts = [via: Via, tool: tool, threshold: 1000] ++ opts ++ place
      Bridge.execute_stream("tool", %{x: large()}, callback, opts)
    end

    test "each chunk is resolved, and taken from its living writer", %{place: place} do
      test = self()

      chunks =
        for n <- 1..3 do
          {handle, _writer} = give("chunk #{n}", place, keep: true)
          %{"data" => %{"__snakepit_shm_chunk__" => handle}, "n" => n}
        end

      assert stream(place, chunks, &send(test, &1)) == :ok
      for n <- 1..3, do: assert_receive(%{"data" => "chunk " <> _, "n" => ^n})
      assert SharedMemory.list_regions!(place) == []
    end

    test "with one that cannot be resolved end in its error, and leave nothing", %{place: place} do
      test = self()
      [a, b, c] = for n <- 1..3, do: elem(give("#{n}", place, keep: true), 0)
      SharedMemory.deallocate_region!(b, dir: place[:dir])
      chunks = for handle <- [a, b, c], do: %{"__snakepit_shm_chunk__" => handle}
      assert code(stream(place, chunks, &send(test, {:chunk, &1}))) == :not_found
      assert_received {:chunk, "1"}
      refute_received {:chunk, _}
      assert SharedMemory.list_regions!(place) == []
    end

    test "what the callback answers is the transport's, and so is an end of ours", %{place: place} do
      {gone, _} = give("gone", place)
      SharedMemory.deallocate_region!(gone, dir: place[:dir])
      test = self()

      defmodule Halting do
        def execute_stream("tool", %{test: test, chunks: chunks}, callback, _opts) do
          for chunk <- chunks, do: send(test, {:answer, callback.(chunk)})
          :ok
        end
      end

      # As Snakepit hands a chunk over: with a key of its own in it.
      chunks = [%{"data" => gone, "is_final" => false}]
      run = &Bridge.execute_stream("tool", %{test: test, chunks: &1}, &2, [via: Halting] ++ place)
      assert run.([%{"n" => 1}], fn %{"n" => 1} -> :halt end) == :ok
      assert_received {:answer, :halt}
      assert code(run.(chunks, fn _ -> flunk("a chunk that is not there") end)) == :not_found
      assert_received {:answer, {:halt, %Error{code: :not_found}}}
    end

    test "with resolve: false the callback has the handles to remove", %{place: place} do
      test = self()
      {handle, _} = give("x", place, keep: true)
      chunks = [%{"__snakepit_shm_chunk__" => handle}]
      assert stream(place, chunks, &send(test, &1), resolve: false) == :ok
      assert_received %{"__snakepit_shm__" => 1, "name" => _} = ^handle
      assert SharedMemory.deallocate_region!(handle, dir: place[:dir])
    end
  end

  describe "without Snakepit" do
    test "R10.5 a call is a named error" do
      assert {:error, %Error{code: :unsupported} = error} = Bridge.execute("tool", %{}, [])
      assert error.message =~ "Snakepit is not loaded"
      assert error.remedy =~ ":via"

      assert {:error, %Error{code: :unsupported}} =
               Bridge.execute_stream("tool", %{}, & &1, via: Sessioned)

      assert {:error, %Error{code: :unsupported}} = Bridge.execute("tool", %{}, via: Enum)
    end

    test "wrong arguments and options are named" do
      assert code(Bridge.execute("tool", [x: 1], via: Via)) == :invalid_option
      assert code(Bridge.execute("tool", %{}, %{via: Via})) == :invalid_option
      assert code(Bridge.execute("tool", %{}, via: Via, threshold: 0)) == :invalid_option
      assert_raise Error, fn -> Bridge.value("x", dtype: :f33) end
    end

    test "the configuration names the transport, and pools may differ", %{place: place} do
      pools = %{Small => [threshold: 10, adaptive: false], Large => %{threshold: 1_000_000}}
      settings = [bridge_via: Via, bridge_threshold: 100, bridge_pools: pools] ++ place
      seen = fn args, _ -> {:ok, is_map(args.x)} end

      with_config(settings, fn ->
        for {pool, bytes, handle?} <- [
              # Within a factor of four of the threshold it may be a trial.
              {Snakepit.Pool, 20, false},
              {Snakepit.Pool, 500, true},
              {Small, 10, true},
              {Small, 9, false},
              {Large, 200_000, false}
            ] do
          x = String.duplicate("x", bytes)
          assert Bridge.execute("t", %{x: x}, pool: pool, tool: seen) == {:ok, handle?}
        end

        assert %{threshold: 10, adaptive: false} = Bridge.threshold(Small)
        assert %{threshold: 1_000_000, adaptive: true} = Bridge.threshold(Large)
      end)

      for wrong <- [
            %{Small => 1},
            %{Small => [treshold: 1]},
            %{"Small" => []},
            [],
            %{S => [via: 1]}
          ] do
        assert {:error, error} = SharedMemory.Config.new(bridge_pools: wrong)
        assert error.message =~ ":bridge_pools"
      end
    end
  end

  describe "Snakepit.ZeroCopyRef" do
    defp with_ref(fun) do
      fields = ~w(kind device dtype shape owner ref copy bytes metadata)a |> Enum.map(&{&1, nil})

      body = quote(do: defstruct(unquote(fields)))
      Module.create(Snakepit.ZeroCopyRef, body, Macro.Env.location(__ENV__))

      try do
        fun.()
      after
        :code.purge(Snakepit.ZeroCopyRef)
        :code.delete(Snakepit.ZeroCopyRef)
        :code.purge(Snakepit.ZeroCopyRef)
      end
    end

    # As Snakepit's own to_map/1 writes it.
    defp to_map(ref) do
      encoded = ref.ref |> :erlang.term_to_binary() |> Base.encode64()

      for {key, value} <- Map.from_struct(ref), into: %{"__snakepit_zero_copy__" => true} do
        value = if key in [:kind, :device, :owner], do: Atom.to_string(value), else: value
        {Atom.to_string(key), if(key == :ref, do: encoded, else: value)}
      end
    end

    test "carries a handle there and back, as a struct and as a map", %{place: place} do
      handle = SharedMemory.share!(large(), [dtype: :u8, shape: [50, 100]] ++ place)

      with_ref(fn ->
        assert {:ok, ref} = Bridge.to_zero_copy_ref(handle)
        assert %{kind: :dlpack, device: :cpu, owner: :elixir, copy: false, bytes: 5000} = ref
        assert %{dtype: "|u1", shape: [50, 100]} = ref
        assert is_reference(ref.ref)
        assert Bridge.from_zero_copy_ref(ref) == {:ok, handle}
        assert Bridge.from_zero_copy_ref(to_map(ref)) == {:ok, handle}
        # As Snakepit's own code writes types and shapes.
        assert Bridge.from_zero_copy_ref(%{ref | shape: {50, 100}, dtype: :u8}) == {:ok, handle}
        assert Bridge.from_zero_copy_ref(%{ref | dtype: "uint8"}) == {:ok, handle}

        for lie <- [
              %{bytes: 1},
              %{shape: [5000]},
              %{dtype: :f32},
              %{metadata: %{}},
              %{metadata: nil}
            ] do
          assert code(Bridge.from_zero_copy_ref(Map.merge(ref, lie))) == :invalid_handle
        end

        table = %{handle | "format" => "arrow_ipc"}
        assert {:ok, %{kind: :arrow}} = Bridge.to_zero_copy_ref(table)
        assert code(Bridge.to_zero_copy_ref(%{})) == :invalid_handle
      end)

      SharedMemory.deallocate_region!(handle, dir: place[:dir])
    end

    test "in a result is what its handle names", %{place: place} do
      reference = fn handle, changes ->
        told = %{"bytes" => 5000, "shape" => [5000], "metadata" => %{"snakepit_shm" => handle}}

        Map.merge(
          %{"__snakepit_zero_copy__" => true, "kind" => "dlpack"},
          Map.merge(told, changes)
        )
      end

      {handle, _} = give(large(), place)
      tool = fn _, _ -> {:ok, [reference.(handle, %{})]} end
      assert {:ok, [^handle]} = call(%{}, place, tool, resolve: false)
      SharedMemory.deallocate_region!(handle, dir: place[:dir])

      {handle, _} = give(large(), place)
      assert call(%{}, place, fn _, _ -> {:ok, [reference.(handle, %{})]} end) == {:ok, [large()]}
      assert SharedMemory.list_regions!(place) == []

      for other <- [%{"metadata" => nil}, %{"metadata" => %{"snakepit_shm" => 1}}] do
        plain = reference.(nil, other)
        assert call(%{}, place, fn _, _ -> {:ok, plain} end) == {:ok, plain}
      end
    end

    test "is a named error without Snakepit" do
      handle = %{"__snakepit_shm__" => 1, "bytes" => 1}
      assert code(Bridge.to_zero_copy_ref(handle)) == :unsupported
      assert code(Bridge.from_zero_copy_ref(:nothing)) == :invalid_handle
    end
  end
end
