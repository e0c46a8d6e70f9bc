defmodule Snakepit.SharedMemory.Bridge.Settings do
  @moduledoc false
  # What a call goes by: its own options, then those of its pool, then the configuration.

  alias Snakepit.SharedMemory.Bridge.Threshold
  alias Snakepit.SharedMemory.{Config, Error, Options, Target}

  @schema [
            via: {{:nilable, :atom}, nil},
            threshold: {{:nilable, {:integer, 1, :infinity}}, nil},
            resolve: {:boolean, true}
          ] ++ Target.schema()

  @default_pool Snakepit.Pool

  # Where not even the files can be gone by.
  @unconfigured %{
    bridge_via: Snakepit,
    bridge_threshold: 65_536,
    bridge_adaptive: true,
    bridge_pools: %{}
  }

  @enforce_keys [:via, :pool, :command, :configured, :known, :threshold, :adaptive, :resolve]
  defstruct @enforce_keys ++ [:session, :namespace, :dir, way: nil, owner: nil]

  @type t :: %__MODULE__{}

  @doc "The settings, and the options that are the transport's."
  @spec new(term(), term(), atom()) :: {:ok, t(), keyword()} | {:error, Error.t()}
  def new(command, opts, operation) do
    if Keyword.keyword?(opts) do
      {ours, theirs} = Keyword.split(opts, Keyword.keys(@schema))

      with {:ok, options} <- Options.validate(ours, @schema, operation),
           do: {:ok, fill(command, options, theirs), theirs}
    else
      {:error, Options.invalid("options", "a keyword list", opts, operation)}
    end
  end

  defp fill(command, options, theirs) do
    pool = Keyword.get(theirs, :pool, @default_pool)
    configured = configured(pool)
    bytes = options.threshold || configured.threshold
    adaptive = configured.adaptive and options.threshold == nil
    known = if adaptive, do: Threshold.of(pool, bytes)

    %__MODULE__{
      via: options.via || configured.via,
      pool: pool,
      command: command,
      configured: bytes,
      known: known,
      threshold: if(known, do: known.bytes, else: bytes),
      adaptive: adaptive,
      resolve: options.resolve,
      session: session(theirs[:session_id]),
      namespace: options.namespace,
      dir: options.dir,
      owner: self()
    }
  end

  defp session(id) when is_binary(id), do: id
  defp session(_none), do: nil

  @doc "What the configuration says of a pool."
  @spec configured(term()) :: %{via: module(), threshold: pos_integer(), adaptive: boolean()}
  def configured(pool) do
    config =
      case Config.fetch(:bridge) do
        {:ok, config} -> config
        # It does not run, or is switched off: everything goes plainly, by what is in the files.
        {:error, _} -> stopped()
      end

    Map.merge(
      %{
        via: config.bridge_via,
        threshold: config.bridge_threshold,
        adaptive: config.bridge_adaptive
      },
      Map.new(Map.get(config.bridge_pools, pool, %{}))
    )
  end

  defp stopped do
    case Config.load() do
      {:ok, config} -> config
      # What is wrong with it was said when the application did not start.
      {:error, _} -> @unconfigured
    end
  end

  @doc "The options that say where regions are."
  @spec place(t()) :: keyword()
  def place(settings) do
    for key <- [:namespace, :dir], value = Map.fetch!(settings, key), do: {key, value}
  end
end
