defmodule Snakepit.SharedMemory.Config do
  @moduledoc """
  Configuration, under `config :snakepit, :shared_memory`.

    * `:enabled` - `false` starts nothing; every call then answers an error with code `:disabled`.
      Default: `true`
    * `:namespace` - prefix of every file, and what separates applications that share a directory:
      letters, digits, `.` and `-`. Default: `"snakepit"`
    * `:dir` - directory of the segments, on a memory file system. Default: `"/dev/shm"`
    * `:max_regions` - how many regions this node may hold at once. Default: `10_000`
    * `:max_region_size` - capacity of one region in bytes, at most 1 GiB. Default: 1 GiB
    * `:max_total_memory` - bytes of all regions of this node together, counting every slot.
      Default: 10 GiB
    * `:mode` - how deaths of other OS processes are noticed: `:real_time` at once, `:simulation` by
      the periodic sweep alone, for environments without pidfd. Default: `:real_time`
    * `:cleanup_interval` - milliseconds between sweeps for what dead processes left. Default: `nil`,
      which is 1 s, and 5 s with `mode: :simulation`
    * `:grace` - milliseconds that the region of a crashed OS process waits for another to take it
      over, before it is removed. Default: `10_000`
    * `:performance_monitoring` - `false` counts and times nothing; what is made of it then answers an
      error with code `:disabled`. Default: `true`
    * `:telemetry_enabled` - `false` emits no event even where `:telemetry` is loaded. Default: `true`
    * `:history_limit` - how many changes of each region are kept for
      `Snakepit.SharedMemory.history/2`; 0 keeps none. Default: `50`

  The configuration is read and checked once, when the application starts; a mistake in it stops
  the start with a message that names the key.
  """

  alias Snakepit.SharedMemory.{Error, Options}

  @gib 1024 * 1024 * 1024
  # A year.
  @longest_ms 366 * 24 * 60 * 60 * 1000

  @schema [
    enabled: {:boolean, true},
    namespace: {:string, "snakepit"},
    dir: {:string, "/dev/shm"},
    max_regions: {{:integer, 1, :infinity}, 10_000},
    max_region_size: {{:integer, 4096, @gib}, @gib},
    max_total_memory: {{:integer, 4096, :infinity}, 10 * @gib},
    mode: {{:in, [:real_time, :simulation]}, :real_time},
    cleanup_interval: {{:nilable, {:integer, 1, @longest_ms}}, nil},
    grace: {{:integer, 0, @longest_ms}, 10_000},
    performance_monitoring: {:boolean, true},
    telemetry_enabled: {:boolean, true},
    history_limit: {{:integer, 0, 1_000_000}, 50}
  ]

  @type t :: %__MODULE__{
          enabled: boolean(),
          namespace: String.t(),
          dir: String.t(),
          max_regions: pos_integer(),
          max_region_size: pos_integer(),
          max_total_memory: pos_integer(),
          mode: :real_time | :simulation,
          cleanup_interval: pos_integer() | nil,
          grace: non_neg_integer(),
          performance_monitoring: boolean(),
          telemetry_enabled: boolean(),
          history_limit: non_neg_integer()
        }

  @enforce_keys Keyword.keys(@schema)
  defstruct @enforce_keys

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
  """
  @spec new(keyword() | map()) :: {:ok, t()} | {:error, Error.t()}
  def new(options) do
    with {:ok, valid} <- Options.validate(options, @schema, :config),
         config = struct!(__MODULE__, valid),
         :ok <- check_namespace(config),
         :ok <- check_dir(config) do
      {:ok, config}
    end
  end

  # The core checks names for every call; here the mistake is named at the start, and by its key.
  defp check_namespace(%{namespace: namespace}) do
    if namespace =~ ~r/\A[A-Za-z0-9-][A-Za-z0-9.-]{0,31}\z/ do
      :ok
    else
      expected = "1 to 32 letters, digits, dots or hyphens, without a leading dot"
      {:error, Options.invalid("option :namespace", expected, namespace, :config)}
    end
  end

  defp check_dir(%{enabled: false}), do: :ok

  defp check_dir(%{dir: dir}) do
    if Path.type(dir) == :absolute and File.dir?(dir) do
      :ok
    else
      expected = "the absolute path of a directory that exists"
      {:error, Options.invalid("option :dir", expected, dir, :config)}
    end
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

  defp disabled(operation) do
    Error.new(:disabled, "shared memory is switched off by its configuration",
      operation: operation,
      remedy: "set enabled: true under config :snakepit, :shared_memory"
    )
  end
end
