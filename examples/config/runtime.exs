# What to put into an application's own config/runtime.exs: what is known on the machine that it
# runs on. Settings are merged over those of config.exs, key by key.

import Config

megabytes = fn name, default ->
  String.to_integer(System.get_env(name, Integer.to_string(default))) * 1024 * 1024
end

if config_env() == :prod do
  config :snakepit, :shared_memory,
    # In a container /dev/shm is small unless it was started with --shm-size; another tmpfs will do.
    dir: System.get_env("SHM_DIR", "/dev/shm"),
    max_total_memory: megabytes.("SHM_MAX_MB", 4096),
    # Where the kernel or the sandbox has no pidfd, deaths are found by sweeping.
    mode: if(System.get_env("SHM_SWEEP_ONLY") == "1", do: :simulation, else: :real_time),
    platform_options: %{
      # As many as there are; where a file gets none the start is refused and says so.
      linux: %{use_hugepages: System.get_env("SHM_HUGE_PAGES") == "1"}
    }
end
