defmodule Snakepit.SharedMemory.ConfigTest do
  use ExUnit.Case, async: true

  alias Snakepit.SharedMemory.{Config, Error}

  doctest Config

  test "defaults" do
    assert {:ok, config} = Config.new([])

    assert Map.from_struct(config) == %{
             enabled: true,
             namespace: "snakepit",
             dir: "/dev/shm",
             max_regions: 10_000,
             max_region_size: 1_073_741_824,
             max_total_memory: 10_737_418_240,
             mode: :real_time,
             cleanup_interval: nil,
             grace: 10_000,
             performance_monitoring: true,
             telemetry_enabled: true,
             history_limit: 50
           }
  end

  test "names the key that is wrong" do
    for {key, value} <- [
          enabled: "yes",
          namespace: :snakepit,
          namespace: "under_score",
          namespace: "",
          namespace: "a/b",
          namespace: String.duplicate("x", 33),
          namespace: "x\n",
          dir: "/no/such/directory",
          dir: "relative",
          dir: 1,
          max_regions: 0,
          max_region_size: 1,
          max_region_size: 0x4000_0001,
          max_total_memory: -1,
          max_total_memory: :infinity,
          mode: :fast,
          cleanup_interval: 0,
          cleanup_interval: "1 s",
          grace: -1,
          grace: nil,
          performance_monitoring: nil,
          telemetry_enabled: 1,
          history_limit: -1,
          history_limit: 1_000_001
        ] do
      assert {:error, %Error{code: :invalid_option} = error} = Config.new([{key, value}])
      assert error.message =~ inspect(key)
    end
  end

  test "a directory does not matter to what is switched off" do
    assert {:ok, %{enabled: false}} = Config.new(enabled: false, dir: "/no/such/directory")
  end
end
