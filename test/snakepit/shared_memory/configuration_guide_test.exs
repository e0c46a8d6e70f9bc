defmodule Snakepit.SharedMemory.ConfigurationGuideTest do
  # Blocks change the configuration of the application, each of one that was started for it.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.Config

  @guide "docs/guides/configuration.md"
  @blocks Regex.scan(~r/^```(\w+)\n(.*?)^```$/ms, File.read!(@guide), capture: :all_but_first)
  @external_resource @guide

  for {["elixir", block], number} <- Enum.with_index(@blocks, 1) do
    test "block #{number} of the guide holds by itself", %{place: place} do
      capture_log(fn ->
        with_config(place, fn -> Code.eval_string(unquote(block)) end)
      end)
    end
  end

  test "the guide's configuration files can be read, and are valid" do
    files = for ["exs", block] <- @blocks, do: block
    assert length(files) == 2

    for block <- files do
      [snakepit: [shared_memory: settings]] =
        Elixir.Config.Reader.eval!("config.exs", block, env: :prod)

      assert {:ok, %Config{}} = Config.new(settings)
    end
  end

  test "the guide's table has every key with its default" do
    {:ok, defaults} = Config.new([])

    documented =
      for [_, key, _values, default] <-
            Regex.scan(~r/^\| `(\w+)` \| (.*?) \| (.*?) \| .* \|$/m, File.read!(@guide)),
          into: %{},
          do: {key, default}

    assert Enum.sort(Map.keys(documented)) == Enum.sort(Enum.map(Config.keys(), &to_string/1))

    sizes = %{"1 GiB" => 1_073_741_824, "10 GiB" => 10_737_418_240}

    for {key, shown} <- documented, key != "platform_options" do
      value =
        case shown do
          "`" <> _ -> shown |> String.trim("`") |> Code.eval_string() |> elem(0)
          _ -> sizes[shown] || shown |> String.replace(",", "") |> String.to_integer()
        end

      assert {key, value} == {key, Map.fetch!(defaults, String.to_existing_atom(key))}
    end
  end

  test "the key's documentation in the module names every key" do
    {:docs_v1, _, _, _, %{"en" => text}, _, _} = Code.fetch_docs(Config)
    for key <- Config.keys(), do: assert(text =~ "`#{inspect(key)}`")
  end

  describe "R10.4 the examples of configuration files" do
    defp settings(file, env) do
      [snakepit: [shared_memory: settings]] =
        Elixir.Config.Reader.read!("examples/config/#{file}", env: env)

      settings
    end

    test "config.exs, in each environment" do
      assert {:ok, %{namespace: "my-app", max_regions: 1_000}} =
               Config.new(settings("config.exs", :prod))

      assert {:ok, %{namespace: "my-app-test", max_total_memory: 67_108_864, max_regions: 1_000}} =
               Config.new(settings("config.exs", :test))
    end

    test "runtime.exs, with and without the environment's variables", %{dir: dir} do
      assert {:ok, %{dir: "/dev/shm", mode: :real_time, max_total_memory: 4_294_967_296}} =
               Config.new(settings("runtime.exs", :prod))

      variables = %{"SHM_DIR" => dir, "SHM_MAX_MB" => "1", "SHM_SWEEP_ONLY" => "1"}
      System.put_env(variables)
      on_exit(fn -> Enum.each(Map.keys(variables), &System.delete_env/1) end)

      assert {:ok, %{dir: ^dir, mode: :simulation, max_total_memory: 1_048_576}} =
               Config.new(settings("runtime.exs", :prod))

      assert Elixir.Config.Reader.read!("examples/config/runtime.exs", env: :dev) == []
    end

    test "both together start an application", %{place: place} do
      merged =
        Elixir.Config.Reader.merge(
          [snakepit: [shared_memory: settings("config.exs", :prod)]],
          snakepit: [shared_memory: settings("runtime.exs", :prod)]
        )

      with_config(Keyword.merge(merged[:snakepit][:shared_memory], place), fn ->
        assert {:ok, %{max_regions_per_process: 100}} = Config.fetch(:test)
        id = SharedMemory.allocate_region!(4096)
        assert SharedMemory.deallocate_region!(id) == id
      end)
    end
  end
end
