defmodule Snakepit.SharedMemory.ConfigTest do
  use ExUnit.Case, async: true

  alias Snakepit.SharedMemory.{Config, Error, Native}

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
             max_regions_per_process: nil,
             max_memory_per_process: nil,
             max_regions_per_session: nil,
             max_memory_per_session: nil,
             on_limit: :reject,
             default_timeout: nil,
             reference_grace: 10_000,
             pool_max_bytes: 512 * 1024 * 1024,
             pool_idle_timeout: 30_000,
             pool_zero: :between_sessions,
             allocation_strategy: :first_fit,
             enable_defragmentation: false,
             security_level: :standard,
             encryption_enabled: false,
             audit_access: false,
             secure_cleanup: false,
             platform_options: %{
               linux: %{use_hugepages: false},
               macos: %{},
               windows: %{use_large_pages: false, security_descriptor: :default}
             },
             telemetry_enabled: true,
             performance_monitoring: true,
             health_check_interval: nil,
             call_timeout: 30_000,
             history_limit: 50,
             session_source: Snakepit.SharedMemory.SessionSource.Snakepit,
             bridge_via: Snakepit,
             bridge_threshold: 65_536,
             bridge_adaptive: true,
             bridge_pools: %{}
           }
  end

  test "R10.4 names the key that is wrong" do
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
          max_regions_per_process: 0,
          max_memory_per_process: 1,
          max_regions_per_session: :many,
          max_memory_per_session: -4096,
          on_limit: :wait,
          on_limit: {:throttle, 0},
          on_limit: {:throttle, :infinity},
          on_limit: {:throttle, 1, 2},
          on_limit: {:reject, 1},
          default_timeout: 0,
          reference_grace: nil,
          allocation_strategy: :next_fit,
          enable_defragmentation: nil,
          security_level: :low,
          encryption_enabled: 1,
          audit_access: "yes",
          secure_cleanup: :always,
          platform_options: :linux,
          platform_options: %{linux: true},
          platform_options: %{linux: %{use_hugepages: nil}},
          platform_options: %{windows: %{security_descriptor: :mine}},
          telemetry_enabled: :sometimes,
          performance_monitoring: 0.5,
          health_check_interval: 0,
          history_limit: -1,
          history_limit: 1_000_001,
          on_limit: {:throttle, 0x1_0000_0000},
          reference_grace: 31 * 24 * 60 * 60 * 1000,
          session_source: "Sessions"
        ] do
      assert {:error, %Error{code: :invalid_option} = error} = Config.new([{key, value}])
      assert error.message =~ inspect(key)
    end
  end

  test "a directory does not matter to what is switched off" do
    assert {:ok, %{enabled: false}} = Config.new(enabled: false, dir: "/no/such/directory")
  end

  test "R14.2 what is not there yet is refused, with what it waits for" do
    for {key, value, reason} <- [
          {:security_level, :high, "encrypted values"},
          {:security_level, :maximum, "signed ones"},
          {:encryption_enabled, true, "encryption"},
          {:audit_access, true, "audit"},
          {:secure_cleanup, true, "overwriting"}
        ] do
      assert {:error, %Error{code: :unsupported} = error} = Config.new([{key, value}])
      assert error.message =~ "option #{inspect(key)} cannot be #{inspect(value)}"
      assert error.message =~ reason
      assert error.remedy =~ "leave #{inspect(key)} at"
      {:ok, defaults} = Config.new([])
      assert {:ok, ^defaults} = Config.new([{key, Map.fetch!(defaults, key)}])
    end
  end

  test "R14.1 limits of processes and sessions, and what is done at one" do
    settings = [
      max_regions_per_process: 100,
      max_memory_per_process: 1_000_000,
      max_regions_per_session: 10,
      max_memory_per_session: 4096,
      on_limit: {:throttle, 5_000},
      default_timeout: 600_000
    ]

    assert {:ok, config} = Config.new(settings)
    assert Map.take(config, Keyword.keys(settings)) == Map.new(settings)
  end

  test "the basic configuration of the design document" do
    assert {:ok, _} =
             Config.new(
               enabled: true,
               max_regions: 1000,
               max_region_size: 1_073_741_824,
               max_total_memory: 10_737_418_240,
               cleanup_interval: 60_000,
               default_timeout: 300_000,
               security_level: :standard
             )
  end

  test "the advanced configuration of the design document, but for what is refused by name" do
    advanced = [
      enabled: true,
      max_regions: 10_000,
      max_total_memory: 107_374_182_400,
      max_regions_per_process: 100,
      allocation_strategy: :best_fit,
      enable_defragmentation: true,
      cleanup_interval: 30_000,
      default_timeout: 600_000,
      platform_options: %{
        linux: %{shm_path: "/dev/shm"},
        windows: %{use_large_pages: true, security_descriptor: :default}
      },
      telemetry_enabled: true,
      performance_monitoring: true,
      health_check_interval: 60_000
    ]

    assert {:ok, _} = Config.new(advanced)

    for {key, value} <- [
          max_region_size: 4_294_967_296,
          security_level: :high,
          encryption_enabled: true,
          audit_access: true,
          secure_cleanup: true
        ] do
      assert {:error, error} = Config.new([{key, value} | advanced])
      assert error.message =~ inspect(key)
    end
  end

  test "shm_path is another name for dir" do
    nested = &[linux: [shm_path: &1]]
    assert {:ok, %{dir: "/tmp"} = config} = Config.new(platform_options: nested.("/tmp"))
    assert config.platform_options.linux == %{use_hugepages: false}
    assert {:ok, %{dir: "/tmp"}} = Config.new(dir: "/tmp", platform_options: nested.("/tmp"))
    assert {:error, error} = Config.new(dir: "/dev/shm", platform_options: nested.("/tmp"))
    assert error.message =~ ":platform_options, :linux, :shm_path"
    assert error.message =~ ":dir"
    assert {:error, error} = Config.new(platform_options: nested.("relative"))
    assert error.message =~ "relative"
  end

  test "huge pages where there are some, else refused by the option's name" do
    {:ok, machine} = Native.capabilities("/dev/shm")
    answer = Config.new(platform_options: %{linux: %{use_hugepages: true}})

    if machine.huge_pages_possible do
      assert {:ok, %{platform_options: %{linux: %{use_hugepages: true}}}} = answer
    else
      assert {:error, %Error{code: :unsupported} = error} = answer
      assert error.message =~ ":platform_options, :linux, :use_hugepages"
      assert error.message =~ "gets no huge page"
      assert error.remedy =~ "remount"
    end
  end

  test "what is checked once is good again" do
    {:ok, config} = Config.new(max_regions: 7, platform_options: [linux: [shm_path: "/tmp"]])
    assert Config.new(Map.from_struct(config)) == {:ok, config}
  end

  test "a process goes by the running configuration of its own place only" do
    {:ok, running} = Config.fetch(:test)
    assert Config.current(%{running | max_regions: 1}).max_regions == running.max_regions
    elsewhere = %{running | namespace: "elsewhere", max_regions: 1}
    assert Config.current(elsewhere) == elsewhere
  end
end
