# What to put into an application's own config/config.exs. Every key and its default:
# docs/guides/configuration.md.
#
# It lies here and not in config/ of this project, because Mix warns of configuration for an
# application that is not there, and :snakepit is not a dependency of this library.

import Config

config :snakepit, :shared_memory,
  # Files are called my-app_..., and no other application meets them.
  namespace: "my-app",

  # Limits of this node. Sizes are bytes.
  max_regions: 1_000,
  max_region_size: 256 * 1024 * 1024,
  max_total_memory: 4 * 1024 * 1024 * 1024,
  max_regions_per_process: 100,

  # Times are milliseconds.
  cleanup_interval: 1_000,
  grace: 10_000,
  health_check_interval: 60_000

# Tests that run beside one another, or beside a running application, want a place of their own.
if config_env() == :test do
  config :snakepit, :shared_memory,
    namespace: "my-app-test",
    max_total_memory: 64 * 1024 * 1024,
    health_check_interval: nil
end
