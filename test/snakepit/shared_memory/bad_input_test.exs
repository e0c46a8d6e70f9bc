defmodule Snakepit.SharedMemory.BadInputTest do
  # Every public function with every wrong type in every argument: an error that says which, and
  # nothing else happens. What is wrong in a finer way is tested where the function is.
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.{Config, Dtype, Manager, Platform, ReferenceCounter}
  alias Snakepit.SharedMemory.{Foreign, SecurityController}

  @moduletag :capture_log

  # Whatever these are, hardly anything takes them for what it wants.
  defp nonsense do
    [
      nil,
      true,
      :atom,
      -1,
      1.5,
      0x1_0000_0000_0000_0000_0000,
      <<1::3>>,
      <<255, 254>>,
      {},
      {:ok, 1},
      ["a" | :b],
      [:a, "b"],
      %{},
      %{nmae: "x"},
      %{"__snakepit_shm__" => self()},
      ~D[2024-02-29],
      self(),
      make_ref(),
      fn -> :ok end,
      remote_pid(),
      remote_ref()
    ]
  end

  # Of a node that this one has never heard of, as they come in a message or out of a file.
  defp remote_pid do
    :erlang.binary_to_term(<<131, 88, 119, 9, "far@there", 77::32, 0::32, 1::32>>)
  end

  defp remote_ref do
    :erlang.binary_to_term(<<131, 90, 1::16, 119, 9, "far@there", 1::32, 77::32>>)
  end

  # What each argument is. Functions without one cannot be called wrongly.
  @functions %{
    SharedMemory => [
      allocate_region: [:size, :options],
      adopt_region: [:region, :options],
      map_region: [:region, :options],
      unmap_region: [:region, :options],
      deallocate_region: [:region, :options],
      write: [:region, :iodata, :options],
      read: [:region, :options],
      read_many: [:regions, :options],
      write_many: [:values, :options],
      buffer: [:size, :options],
      read_into: [:region, :buffer, :options],
      lend_region: [:region, :options],
      take_back_region: [:region, :options],
      seal: [:region, :options],
      binary: [:region, :options],
      share: [:iodata, :options],
      fetch: [:region, :options],
      handle: [:region, :options],
      with_writer: [:region, :options, :function],
      get_region_info: [:region, :options],
      list_regions: [:options],
      release_session: [:id, :options],
      release_worker: [:id, :options],
      cleanup_regions: [:options],
      history: [:region, :options],
      health_check: [:options],
      subscribe: [:region, :options],
      set_active: [:subscription, :active],
      unsubscribe: [:subscription],
      reconfigure: [:changes]
    ],
    Manager => [
      allocate_region: [:size, :options],
      map_region: [:region, :options],
      unmap_region: [:region],
      deallocate_region: [:region],
      get_region_info: [:region],
      list_regions: [:options],
      cleanup_regions: [:options]
    ],
    ReferenceCounter => [
      increment: [:region, :holder, :options],
      decrement: [:region, :holder, :options],
      get_count: [:region, :options],
      get_references: [:region, :options]
    ],
    SecurityController => [
      validate_access: [:any, :any, :any],
      apply_security_policy: [:any, :binary, :level],
      secure_cleanup: [:any, :binary, :level]
    ],
    Platform.Linux => [
      allocate: [:id, :size, :options],
      map: [:platform_handle, :options],
      unmap: [:mapping, :size],
      deallocate: [:platform_handle],
      get_info: [:platform_handle],
      capabilities: [:id]
    ],
    Config => [new: [:options]],
    Error => [handle_error: [:class, :options, :any]]
  }

  # Not called by applications with terms of theirs: callbacks, and what is not documented.
  @others %{
    SecurityController => [check: 3],
    Config => [
      change: 2,
      current: 1,
      fetch: 1,
      install: 1,
      load: 0,
      needs_restart: 0,
      uninstall: 0,
      __struct__: 0,
      __struct__: 1
    ],
    Error => [
      class: 1,
      codes: 0,
      exception: 1,
      from_native: 2,
      from_native: 3,
      message: 1,
      native_codes: 0,
      new: 2,
      new: 3,
      not_found: 2,
      not_started: 1,
      to_snakepit: 1,
      wrap: 3,
      __struct__: 0,
      __struct__: 1
    ]
  }

  # What is what it should be after all.
  defp acceptable?(kind, %{} = empty) when kind in [:options, :changes], do: empty == %{}
  defp acceptable?(:iodata, value), do: is_binary(value)
  defp acceptable?(:binary, value), do: is_binary(value)
  # A list of what are no regions: each has its own answer.
  defp acceptable?(:regions, value), do: value == [:a, "b"]
  defp acceptable?(:holder, value) when is_pid(value), do: node(value) == node()
  defp acceptable?(:holder, value) when is_reference(value), do: node(value) == node()
  defp acceptable?(:active, value), do: is_boolean(value)
  defp acceptable?(:any, _value), do: true
  defp acceptable?(_kind, _value), do: false

  defp good(:size, _), do: 4096
  defp good(:options, place), do: place
  defp good(:region, _), do: "good"
  defp good(:regions, _), do: ["good"]
  defp good(:values, _), do: [{"good", "data"}]
  defp good(:buffer, _), do: SharedMemory.buffer!(4096)
  defp good(:iodata, _), do: "data"
  defp good(:function, _), do: & &1
  defp good(:id, _), do: "id"
  defp good(:holder, _), do: self()
  defp good(:active, _), do: :once
  defp good(:changes, _), do: []
  defp good(:binary, _), do: "data"
  defp good(:level, _), do: :standard
  defp good(:class, _), do: :platform_error
  defp good(_, _), do: :none

  # Each function with one argument that is wrong, by its arguments' number: the optional one, if
  # it is not the wrong one, may be left out.
  defp calls(module, place) do
    for {name, kinds} <- Map.fetch!(@functions, module),
        {kind, position} <- Enum.with_index(kinds),
        thing <- nonsense(),
        not acceptable?(kind, thing) do
      arguments = kinds |> Enum.map(&good(&1, place)) |> List.replace_at(position, thing)
      {name, kind, thing, arguments}
    end
  end

  setup %{place: place} do
    id = SharedMemory.allocate_region!(4096, [name: "good"] ++ place)
    SharedMemory.write!(id, "untouched", place)
    :ok
  end

  test "the table has every function of every module that applications call" do
    for {module, functions} <- @functions do
      exported =
        for {name, arity} <- module.__info__(:functions),
            {name, arity} not in Map.get(@others, module, []),
            arity > 0,
            not String.ends_with?(to_string(name), "!"),
            uniq: true,
            do: name

      assert Enum.sort(Keyword.keys(functions)) == Enum.sort(exported), inspect(module)

      for {name, kinds} <- functions do
        assert function_exported?(module, name, length(kinds)), "#{name}"
      end
    end
  end

  for module <- Map.keys(@functions) do
    test "#{inspect(module)}: a wrong type is a named error", %{place: place} do
      calls = calls(unquote(module), place)
      assert length(calls) >= 15

      for {name, kind, thing, arguments} <- calls do
        answer = apply(unquote(module), name, arguments)
        said = "#{name} with #{inspect(thing)} for #{kind}: #{inspect(answer)}"
        assert {:error, %Error{code: code, remedy: remedy}} = answer, said
        assert is_binary(remedy), said
        assert code in Error.codes(), said
        # What cannot be right must not be looked for, waited for, or tried.
        refute code in [:timeout, :closed, :not_found, :io, :not_started], said
      end

      assert SharedMemory.read!("good", place) == "untouched"
      assert [%{id: "good", reference_count: 1}] = SharedMemory.list_regions!(place)
    end
  end

  test "the twin that raises raises that error", %{place: place} do
    for {name, kind, thing, arguments} <- calls(SharedMemory, place) do
      twin = String.to_existing_atom("#{name}!")
      said = "#{twin} with #{inspect(thing)} for #{kind}"
      error = catch_error(apply(SharedMemory, twin, arguments))
      assert %Error{} = error, said
      assert {:error, %Error{code: code}} = apply(SharedMemory, name, arguments)
      assert error.code == code, said
    end
  end

  test "an option misspelt: it is named, with what was probably meant", %{place: place} do
    misspelt = [{:namespce, "x"} | place]

    for {module, functions} <- Map.take(@functions, [SharedMemory, ReferenceCounter]),
        {name, kinds} <- functions,
        position = Enum.find_index(kinds, &(&1 == :options)) do
      arguments = kinds |> Enum.map(&good(&1, place)) |> List.replace_at(position, misspelt)

      assert {:error, %Error{code: :invalid_option} = error} = apply(module, name, arguments)
      assert error.message =~ "unknown option :namespce", "#{name}: #{error.message}"

      # Sessions and workers are those of the node; a buffer is of no place.
      if name not in [:release_session, :release_worker, :buffer] do
        assert error.message =~ "did you mean :namespace?", "#{name}: #{error.message}"
      end
    end

    assert {:error, error} = SharedMemory.reconfigure(max_regoins: 1)
    assert error.message =~ "did you mean :max_regions?"
  end

  test "pids and references of another node hold nothing here", %{place: place} do
    assert node(remote_pid()) == :far@there and node(remote_ref()) == :far@there

    for answer <- [
          SharedMemory.allocate_region(4096, [owner: remote_pid()] ++ place),
          SharedMemory.share("x", [owner: remote_pid()] ++ place),
          SharedMemory.subscribe("good", [pid: remote_pid()] ++ place),
          SharedMemory.list_regions([owner: remote_pid()] ++ place)
        ] do
      assert {:error, %Error{code: :invalid_option} = error} = answer
      assert error.message =~ "a pid of this node"
    end

    for holder <- [remote_pid(), remote_ref()], call <- [:increment, :decrement] do
      assert {:error, error} = apply(ReferenceCounter, call, ["good", holder, place])
      assert error.code == :invalid_argument
      assert error.remedy =~ "of this node"
    end

    region = SharedMemory.map_region!("good", place)

    for made_up <- [
          %{region | ref: remote_ref(), mapped_by: remote_pid()},
          %{region | ref: make_ref()},
          %{region | ref: nil}
        ] do
      assert {:error, %Error{}} = SharedMemory.unmap_region(made_up)
    end

    assert ReferenceCounter.get_count("good", place) == {:ok, 2}
    assert {:ok, "good"} = SharedMemory.unmap_region(region)
  end

  test "handles of another namespace, and of another directory", %{place: place} do
    handle = SharedMemory.share!("shared", place)
    elsewhere = TestDir.create!("elsewhere-#{System.unique_integer([:positive])}")
    on_exit(fn -> TestDir.remove_empty!(elsewhere) end)

    for {handle, options} <- [
          {%{handle | "namespace" => "another"}, place},
          {%{handle | "namespace" => "../x"}, place},
          {%{handle | "namespace" => nil}, place},
          {Map.put(handle, "host", "far"), place},
          {handle, [dir: elsewhere]},
          {handle, [dir: "/no/such/directory"]}
        ],
        call <- [:fetch, :read, :map_region, :get_region_info, :deallocate_region] do
      assert {:error, %Error{}} = apply(SharedMemory, call, [handle, options])
    end

    assert File.ls!(elsewhere) == []
    assert SharedMemory.fetch!(handle, place) == "shared"
    SharedMemory.deallocate_region!(handle, place)
  end

  test "ids, handles and mappings of a run that is dead", %{place: place} do
    peer = Foreign.start([grace: 0] ++ place)

    {handle, region} =
      Foreign.run(peer, """
      alias Snakepit.SharedMemory
      handle = SharedMemory.share!("of a former run", name: "former")
      {handle, SharedMemory.map_region!("former")}
      """)

    assert SharedMemory.fetch!(handle, place) == "of a former run"
    # What was a mapping there is none here, whoever lives.
    assert code(SharedMemory.read(region)) == :invalid_argument
    assert code(SharedMemory.unmap_region(region)) == :invalid_argument
    Foreign.kill(peer)
    SharedMemory.cleanup_regions!([grace: 0] ++ place)

    for {what, codes} <- [{"former", [:not_found]}, {handle, [:not_found, :invalid_handle]}],
        call <- [:fetch, :read, :binary, :map_region, :get_region_info, :deallocate_region],
        not (call == :fetch and is_binary(what)) do
      assert code(apply(SharedMemory, call, [what, place])) in codes
    end

    # Its name is free, and what has it now is another.
    id = SharedMemory.allocate_region!(4096, [name: "former"] ++ place)
    SharedMemory.write!(id, "of this run!!!!", place)

    for call <- [:fetch, :read, :map_region, :deallocate_region] do
      answer = apply(SharedMemory, call, [handle, place])
      assert code(answer) in [:invalid_handle, :not_found], "#{call}: #{inspect(answer)}"
    end

    assert SharedMemory.read!(id, place) == "of this run!!!!"
  end

  test "what only computes takes any term, or says by ArgumentError that it does not" do
    for thing <- nonsense() do
      assert Dtype.to_string(thing) in [:error, {:ok, thing}]
      assert Dtype.item_size(thing) == :error
      assert_raise ArgumentError, fn -> Platform.get_implementation(thing) end
    end
  end
end
