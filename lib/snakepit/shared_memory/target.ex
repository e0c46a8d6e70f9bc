defmodule Snakepit.SharedMemory.Target do
  @moduledoc false
  # Which region a call means, and the key under which the registry knows it.
  #
  # The key of a region in the configured namespace and directory is its id alone, so that the
  # common lookup builds nothing; elsewhere it is `{dir, namespace, id}`.

  alias Snakepit.SharedMemory.{Config, Error, Native, Options, Region}

  @enforce_keys [:id, :namespace, :dir, :key]
  defstruct @enforce_keys

  @type key :: String.t() | {String.t(), String.t(), String.t()}
  @type t :: %__MODULE__{id: String.t(), namespace: String.t(), dir: String.t(), key: key()}

  @schema [namespace: {{:nilable, :string}, nil}, dir: {{:nilable, :string}, nil}]

  @doc "The options that say where a region is, for every schema that takes them."
  @spec schema() :: Options.schema()
  def schema, do: @schema

  @doc "The region that an id, a held mapping or a handle means."
  @spec resolve(term(), map(), atom()) :: {:ok, t()} | {:error, Error.t()}
  def resolve(region, options, operation) do
    with {:ok, config} <- Config.fetch(operation) do
      case region do
        id when is_binary(id) -> named(id, options, config, operation)
        %Region{} -> held(region, config, operation)
        %{"__snakepit_shm__" => _} -> from_handle(region, options, config, operation)
        other -> {:error, not_a_region(other, operation)}
      end
    end
  end

  # The core tells what is wrong with other names; it takes none that is no text.
  defp named(id, options, config, operation) do
    if String.valid?(id) do
      {:ok, new(id, options, config)}
    else
      {:error, not_a_region(id, operation)}
    end
  end

  # One that was put together by hand, or has come from another VM, has the form alone.
  defp held(region, config, operation) do
    if genuine?(region) do
      {:ok, new(region.id, Map.take(region, [:namespace, :dir]), config)}
    else
      {:error, not_a_region(region, operation)}
    end
  end

  defp genuine?(%Region{id: id, namespace: namespace, dir: dir, ref: ref, reader: reader})
       when is_binary(id) and is_binary(namespace) and is_binary(dir) and is_reference(ref) do
    Native.reader_version(reader)
    true
  rescue
    ArgumentError -> false
  end

  defp genuine?(_region), do: false

  @doc "The region called `id`, where `options` say or the configuration does."
  @spec new(String.t(), map(), Config.t()) :: t()
  def new(id, options, config) do
    namespace = Map.get(options, :namespace) || config.namespace
    dir = expand(Map.get(options, :dir)) || config.dir
    default? = namespace == config.namespace and dir == config.dir
    key = if default?, do: id, else: {dir, namespace, id}
    %__MODULE__{id: id, namespace: namespace, dir: dir, key: key}
  end

  @doc "The id that telemetry names, before anything has been checked."
  @spec id(term()) :: String.t() | nil
  def id(id) when is_binary(id), do: id
  def id(%Region{id: id}) when is_binary(id), do: id
  def id(%{"name" => name}) when is_binary(name), do: name
  def id(_region), do: nil

  @doc "The error for something that names no region."
  @spec not_a_region(term(), atom()) :: Error.t()
  def not_a_region(other, operation) do
    shown = inspect(other, limit: 5, printable_limit: 60)

    Error.new(:invalid_argument, "not a region: #{shown}",
      operation: operation,
      remedy: "pass a region id (a string), a %Region{} from map_region/2, or a handle"
    )
  end

  @doc "What the NIF is told about the region; `settings` are those of a creation."
  @spec native(t(), map()) :: Native.segment()
  def native(%__MODULE__{} = target, settings \\ %{}) do
    Map.merge(
      %{
        name: target.id,
        namespace: target.namespace,
        dir: target.dir,
        size: nil,
        slots: nil,
        max_readers: nil,
        integrity: nil,
        notify: nil,
        timestamps: nil,
        reserve: nil,
        permissions: nil,
        schema_id: nil,
        prefault: nil,
        huge_pages: nil,
        lock_memory: nil,
        numa: nil,
        pooled: nil,
        tenant: nil,
        incarnation: nil
      },
      settings
    )
  end

  # A handle names its namespace itself.
  defp from_handle(handle, options, config, operation) do
    case parse(handle) do
      {:ok, {name, namespace}} ->
        {:ok, new(name, Map.put(options, :namespace, namespace), config)}

      {:error, failure} ->
        {:error, Error.from_native(failure, operation)}
    end
  end

  # The NIF refuses terms that JSON cannot say, and those that are larger than a handle can be; for the
  # caller that is one more invalid handle.
  defp parse(handle) do
    Native.parse_handle(handle)
  rescue
    ArgumentError ->
      {:error,
       {:invalid_handle,
        "invalid handle: it holds terms that JSON cannot say, or far more than a handle", nil,
        "pass the handle exactly as share/2 returned it"}}
  end

  defp expand(nil), do: nil
  defp expand(dir), do: Path.expand(dir)
end
