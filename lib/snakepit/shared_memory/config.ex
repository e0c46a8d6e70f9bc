defmodule Snakepit.SharedMemory.Config do
  @moduledoc """
  Configuration, under `config :snakepit, :shared_memory`.

  The guide `docs/guides/configuration.md` has examples. Sizes are bytes, times milliseconds; where
  `nil` is possible it switches the thing off. Keys marked *restart* take effect when the
  application is started anew, all others at once with `Snakepit.SharedMemory.reconfigure/1`.

  Where and whether:

    * `:enabled` - `false` starts nothing; every call then answers an error with code `:disabled`.
      Default: `true`. *Restart*
    * `:namespace` - prefix of every file, and what separates applications that share a directory:
      letters, digits, `.` and `-`. Default: `"snakepit"`. *Restart*
    * `:dir` - directory of the segments, on a memory file system. Default: `"/dev/shm"`. *Restart*
    * `:platform_options` - options of one platform each, of which those of the platform that it
      runs on count; all are checked:
        * `linux: %{use_hugepages: boolean, shm_path: path}` - huge pages under the regions' values, as
          `allocate_region/2` has them with `huge_pages: :prefer`; refused where a file in the
          directory gets none (default: `false`); and another name for `:dir`, refused when both are given and differ
        * `windows: %{use_large_pages: boolean, security_descriptor: :default}`, `macos: %{}` - there
          is no support for these platforms yet (`Snakepit.SharedMemory.Platform`)

  Limits of this node. What is over them is refused with code `:resource_exhausted`:

    * `:max_regions` - regions at once. Default: `10_000`
    * `:max_region_size` - capacity of one region, at most 1 GiB. Default: 1 GiB
    * `:max_total_memory` - all regions together, counting every slot. Default: 10 GiB
    * `:max_regions_per_process`, `:max_memory_per_process` - of one owner. Default: `nil`
    * `:max_regions_per_session`, `:max_memory_per_session` - of one session. Default: `nil`
    * `:on_limit` - `:reject`, or `{:throttle, ms}`: wait so long for room. Default: `:reject`

  When regions go:

    * `:default_timeout` - disuse after which a region is removed that names no timeout of its own.
      Default: `nil`, never
    * `:reference_grace` - how long a region stays that nobody refers to any more. Default: `10_000`
    * `:grace` - how long the region of a crashed OS process waits for another to take it over,
      before it is removed. Default: `10_000`
    * `:cleanup_interval` - time between sweeps for what dead processes left. Default: `nil`, which
      is 1 s, and 5 s with `mode: :simulation`
    * `:call_timeout` - how long a call waits at most for this library's own processes, and for the
      file work that they have done; then it answers an error with code `:timeout`. Default: `30_000`
    * `:mode` - how deaths of other OS processes are noticed: `:real_time` at once, `:simulation` by
      the periodic sweep alone, for environments without pidfd. Default: `:real_time`
    * `:session_source` - module that knows which sessions and workers have ended, see
      `Snakepit.SharedMemory.SessionSource`; refused when it cannot be loaded or lacks a callback.
      Default: Snakepit's own session store and worker registry, when Snakepit is loaded

  What is kept of regions that ended, for those that come (`Snakepit.SharedMemory.Pool`):

    * `:pool_max_bytes` - at most; 0 keeps nothing. Default: 512 MiB
    * `:pool_idle_timeout` - for so long, unless a region takes it. Default: `30_000`
    * `:pool_zero` - when it is zeroed: `:between_sessions`, `:always` or `:never`. Default:
      `:between_sessions`
    * `:allocation_strategy` - what a region gets of that: `:first_fit`, `:best_fit` or `:worst_fit`.
      Default: `:first_fit`
    * `:enable_defragmentation` - cut files that are longer than their regions need. Default: `false`

  What `Snakepit.SharedMemory.Bridge` goes by:

    * `:bridge_via` - module that carries its calls. Default: `Snakepit`
    * `:bridge_threshold` - bytes from which an argument travels as a handle. Default: 64 KiB
    * `:bridge_adaptive` - whether that follows what is measured, for each pool. Default: `true`
    * `:bridge_pools` - a map of pools to options of their own, `:via`, `:threshold` and `:adaptive`, for
      those that are to differ. Default: `%{}`

  What is watched:

    * `:telemetry_enabled` - `false` emits no event even where `:telemetry` is loaded. Default: `true`
    * `:performance_monitoring` - `false` counts and times nothing; what is made of it then answers an
      error with code `:disabled`. Default: `true`
    * `:health_check_interval` - time between health checks. Default: `nil`, only when asked to
    * `:history_limit` - how many changes of each region are kept for
      `Snakepit.SharedMemory.history/2`; 0 keeps none. Default: `50`

  What is not there yet. Another value than the default is refused with code `:unsupported` and the
  reason, for a setting that does nothing would be worse:

    * `:security_level` - `:standard`, `:high` or `:maximum`. Default: `:standard`
    * `:encryption_enabled`, `:audit_access`, `:secure_cleanup` - default: `false`

  The configuration is read and checked when the application starts; a mistake in it stops the
  start with a message that names the key.
  """

  alias Snakepit.SharedMemory.{Error, Options}
  alias Snakepit.SharedMemory.Config.Machine

  @gib 1024 * 1024 * 1024
  # A year.
  @longest_ms 366 * 24 * 60 * 60 * 1000
  # Thirty days: a timer of the VM takes no more than 49.
  @longest_timer_ms 30 * 24 * 60 * 60 * 1000

  @positive {:nilable, {:integer, 1, :infinity}}
  @memory {:nilable, {:integer, 4096, :infinity}}
  @interval {:nilable, {:integer, 1, @longest_ms}}
  @throttle {:tuple, [{:in, [:throttle]}, {:integer, 1, @longest_timer_ms}]}

  @platforms [
    linux:
      {{:options, [use_hugepages: {:boolean, false}, shm_path: {{:nilable, :string}, nil}]}, nil},
    macos: {{:options, []}, nil},
    windows:
      {{:options,
        [use_large_pages: {:boolean, false}, security_descriptor: {{:in, [:default]}, :default}]},
       nil}
  ]

  # Without defaults: what is not said of a pool is as for all.
  @pool [
    via: {:atom, nil},
    threshold: {{:integer, 1, :infinity}, nil},
    adaptive: {:boolean, nil}
  ]

  @schema [
    enabled: {:boolean, true},
    namespace: {:string, "snakepit"},
    dir: {:string, "/dev/shm"},
    max_regions: {{:integer, 1, :infinity}, 10_000},
    max_region_size: {{:integer, 4096, @gib}, @gib},
    max_total_memory: {{:integer, 4096, :infinity}, 10 * @gib},
    max_regions_per_process: {@positive, nil},
    max_memory_per_process: {@memory, nil},
    max_regions_per_session: {@positive, nil},
    max_memory_per_session: {@memory, nil},
    on_limit: {{:either, [{:in, [:reject]}, @throttle]}, :reject},
    default_timeout: {@interval, nil},
    reference_grace: {{:integer, 0, @longest_timer_ms}, 10_000},
    mode: {{:in, [:real_time, :simulation]}, :real_time},
    cleanup_interval: {@interval, nil},
    grace: {{:integer, 0, @longest_ms}, 10_000},
    pool_max_bytes: {{:integer, 0, :infinity}, 512 * 1024 * 1024},
    pool_idle_timeout: {{:integer, 1, @longest_timer_ms}, 30_000},
    pool_zero: {{:in, [:never, :between_sessions, :always]}, :between_sessions},
    allocation_strategy: {{:in, [:first_fit, :best_fit, :worst_fit]}, :first_fit},
    enable_defragmentation: {:boolean, false},
    security_level: {{:in, [:standard, :high, :maximum]}, :standard},
    encryption_enabled: {:boolean, false},
    audit_access: {:boolean, false},
    secure_cleanup: {:boolean, false},
    platform_options: {{:options, @platforms}, nil},
    telemetry_enabled: {:boolean, true},
    performance_monitoring: {:boolean, true},
    health_check_interval: {@interval, nil},
    call_timeout: {{:integer, 1, @longest_timer_ms}, 30_000},
    history_limit: {{:integer, 0, 1_000_000}, 50},
    session_source: {:atom, Snakepit.SharedMemory.SessionSource.Snakepit},
    bridge_via: {:atom, Snakepit},
    bridge_threshold: {{:integer, 1, :infinity}, 65_536},
    bridge_adaptive: {:boolean, true},
    bridge_pools: {{:each, @pool}, %{}}
  ]

  # What files are called and where they lie cannot change under the regions that are there.
  @needs_restart [:enabled, :namespace, :dir]

  @type t :: %__MODULE__{
          enabled: boolean(),
          namespace: String.t(),
          dir: String.t(),
          max_regions: pos_integer(),
          max_region_size: pos_integer(),
          max_total_memory: pos_integer(),
          max_regions_per_process: pos_integer() | nil,
          max_memory_per_process: pos_integer() | nil,
          max_regions_per_session: pos_integer() | nil,
          max_memory_per_session: pos_integer() | nil,
          on_limit: :reject | {:throttle, pos_integer()},
          default_timeout: pos_integer() | nil,
          reference_grace: non_neg_integer(),
          mode: :real_time | :simulation,
          cleanup_interval: pos_integer() | nil,
          grace: non_neg_integer(),
          pool_max_bytes: non_neg_integer(),
          pool_idle_timeout: pos_integer(),
          pool_zero: :never | :between_sessions | :always,
          allocation_strategy: :first_fit | :best_fit | :worst_fit,
          enable_defragmentation: boolean(),
          security_level: :standard,
          encryption_enabled: false,
          audit_access: false,
          secure_cleanup: false,
          platform_options: %{linux: map(), macos: map(), windows: map()},
          telemetry_enabled: boolean(),
          performance_monitoring: boolean(),
          health_check_interval: pos_integer() | nil,
          call_timeout: pos_integer(),
          history_limit: non_neg_integer(),
          session_source: module(),
          bridge_via: module(),
          bridge_threshold: pos_integer(),
          bridge_adaptive: boolean(),
          bridge_pools: %{optional(atom()) => keyword() | map()}
        }

  @keys Keyword.keys(@schema)
  @enforce_keys @keys
  defstruct @keys

  @doc """
  All keys.

      iex> :max_regions in Snakepit.SharedMemory.Config.keys()
      true
  """
  @spec keys() :: [atom()]
  def keys, do: @keys

  @doc """
  The keys that take effect when the application is started anew.

      iex> Snakepit.SharedMemory.Config.needs_restart()
      [:enabled, :namespace, :dir]
  """
  @spec needs_restart() :: [atom()]
  def needs_restart, do: @needs_restart

  @doc "Reads and checks the application's configuration."
  @spec load() :: {:ok, t()} | {:error, Error.t()}
  def load, do: new(Application.get_env(:snakepit, :shared_memory, []))

  @doc """
  Checks a keyword list or map of options.

      iex> {:ok, config} = Snakepit.SharedMemory.Config.new(max_regions: 5)
      iex> {config.max_regions, config.namespace}
      {5, "snakepit"}
      iex> {:error, error} = Snakepit.SharedMemory.Config.new(max_region: 5)
      iex> error.message
      "unknown option :max_region, did you mean :max_regions?"
      iex> {:error, error} = Snakepit.SharedMemory.Config.new(platform_options: %{linux: %{use_hugepages: 1}})
      iex> error.message
      "invalid option :platform_options, :linux, :use_hugepages: expected true or false, got: 1"
  """
  @spec new(keyword() | map()) :: {:ok, t()} | {:error, Error.t()}
  def new(options), do: check(options, :config)

  defp check(options, operation) do
    with {:ok, valid} <- Options.validate(options, @schema, operation),
         {:ok, valid} <- one_dir(valid, options, operation),
         config = struct!(__MODULE__, valid),
         :ok <- Machine.check(config, operation) do
      {:ok, config}
    end
  end

  # `shm_path` is another name for `dir`, and becomes it.
  defp one_dir(%{platform_options: %{linux: linux} = platforms} = valid, options, operation) do
    {path, linux} = Map.pop(linux, :shm_path)
    path = path && normal(path)
    valid = %{valid | dir: normal(valid.dir), platform_options: %{platforms | linux: linux}}

    cond do
      path == nil or path == valid.dir -> {:ok, valid}
      given?(options, :dir) -> {:error, two_dirs(path, valid.dir, operation)}
      true -> {:ok, %{valid | dir: path}}
    end
  end

  # The directory is a part of what regions are known by: it has one spelling. A relative one is
  # refused later.
  defp normal(dir), do: if(Path.type(dir) == :absolute, do: Path.expand(dir), else: dir)

  defp given?(options, key), do: Enum.any?(options, fn {name, _value} -> name == key end)

  defp two_dirs(path, dir, operation) do
    Options.invalid(
      "option :platform_options, :linux, :shm_path",
      "what option :dir says, #{inspect(dir)}",
      path,
      operation
    )
  end

  # -- changes --------------------------------------------------------------------------------

  @doc false
  # The whole configuration as it would be with `changes`, and the keys that they are about.
  @spec change(t(), term()) :: {:ok, t(), [atom()]} | {:error, Error.t()}
  def change(running, changes) do
    # By themselves first, so that a message is about what the caller said.
    with {:ok, checked} <- Options.validate(changes, @schema, :reconfigure),
         named = named(changes, checked),
         base = Map.from_struct(running),
         # One that is said in the other way replaces what was said before.
         base = if(:dir in named, do: Map.delete(base, :dir), else: base),
         {:ok, next} <- check(merge(base, Map.new(changes)), :reconfigure) do
      {:ok, next, named}
    end
  end

  defp named(changes, checked) do
    keys = Enum.map(changes, &elem(&1, 0))
    keys = if checked.platform_options.linux.shm_path, do: [:dir | keys], else: keys
    Enum.uniq(keys)
  end

  # Options inside an option are changed one by one, as those outside are.
  defp merge(base, changes) do
    Map.merge(base, changes, fn
      :bridge_pools, _old, new -> new
      _key, %{} = old, new when is_map(new) or is_list(new) -> merge(old, Map.new(new))
      _key, _old, new -> new
    end)
  end

  # -- the running configuration --------------------------------------------------------------

  @key {__MODULE__, :running}

  @doc false
  @spec install(t()) :: :ok
  def install(config), do: :persistent_term.put(@key, config)

  @doc false
  @spec uninstall() :: boolean()
  def uninstall, do: :persistent_term.erase(@key)

  @doc "The configuration that the application runs with, for `operation` to use."
  @spec fetch(atom()) :: {:ok, t()} | {:error, Error.t()}
  def fetch(operation) do
    case :persistent_term.get(@key, nil) do
      nil -> {:error, Error.not_started(operation)}
      %{enabled: false} -> {:error, disabled(operation)}
      config -> {:ok, config}
    end
  end

  @doc false
  # What a process that was started with `config` goes by. One that is restarted has the argument
  # of its first start, and the configuration may have changed since.
  @spec current(t()) :: t()
  def current(%__MODULE__{namespace: namespace, dir: dir} = config) do
    case :persistent_term.get(@key, nil) do
      %__MODULE__{namespace: ^namespace, dir: ^dir} = running -> running
      _none_or_of_another_place -> config
    end
  end

  defp disabled(operation) do
    Error.new(:disabled, "shared memory is switched off by its configuration",
      operation: operation,
      remedy: "set enabled: true under config :snakepit, :shared_memory"
    )
  end
end
