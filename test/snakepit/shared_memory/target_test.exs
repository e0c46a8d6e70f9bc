defmodule Snakepit.SharedMemory.TargetTest do
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.{Config, Target}

  setup do
    {:ok, config} = Config.fetch(:test)
    {:ok, config: config}
  end

  test "the key of a region in the configured place is its id", %{config: config} do
    assert %Target{id: "x", key: "x"} = target = Target.new("x", %{}, config)
    assert Target.new("x", %{namespace: nil, dir: nil}, config) == target

    assert Target.new("x", %{namespace: config.namespace, dir: config.dir <> "/."}, config) ==
             target
  end

  test "elsewhere the key says where", %{config: config} do
    assert Target.new("x", %{namespace: "n"}, config).key == {config.dir, "n", "x"}
    assert Target.new("x", %{dir: "/dev/../dev"}, config).key == {"/dev", config.namespace, "x"}
  end

  test "a directory has one spelling, however the configuration and a call write it" do
    {:ok, plain} = Config.new(dir: "/dev/shm")

    for written <- ["/dev/shm/", "/dev//shm", "/dev/shm/.", "/dev/pts/../shm"] do
      assert {:ok, ^plain} = Config.new(dir: written)
      linux = %{platform_options: %{linux: %{shm_path: written}}}
      assert {:ok, ^plain} = Config.new(linux)
      assert {:ok, ^plain} = Config.new(Map.put(linux, :dir, "/dev/shm"))
      assert Target.new("x", %{dir: written}, plain).key == "x"
    end

    assert {:error, %{code: :invalid_option}} = Config.new(dir: "dev/shm")
    assert {:ok, ^plain, [:dir]} = Config.change(plain, dir: "/dev/shm/")
  end

  test "an id, a mapping and a handle of one region mean the same", %{place: place} do
    handle = SharedMemory.share!("x", [name: "one"] ++ place)
    region = SharedMemory.map_region!("one", place)
    options = Map.new(place)
    assert {:ok, target} = Target.resolve("one", options, :test)
    assert Target.resolve(region, %{}, :test) == {:ok, target}
    assert Target.resolve(handle, Map.take(options, [:dir]), :test) == {:ok, target}
    assert Enum.map(["one", region, handle], &Target.id/1) == ["one", "one", "one"]
  end

  test "what names no region" do
    for thing <- [nil, :id, 1, %{}, [], {}, self()] do
      assert {:error, %Error{code: :invalid_argument}} = Target.resolve(thing, %{}, :test)
      assert Target.id(thing) == nil
    end

    assert {:error, %Error{code: :invalid_handle}} =
             Target.resolve(%{"__snakepit_shm__" => {1}}, %{}, :test)
  end
end
