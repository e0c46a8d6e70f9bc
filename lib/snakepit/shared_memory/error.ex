defmodule Snakepit.SharedMemory.Error do
  @moduledoc """
  Why a call failed, and what to do about it.

  Every function of `Snakepit.SharedMemory` answers `{:error, %Error{}}`; its `!` twin raises it.

    * `:code` - what went wrong, an atom of `codes/0`; stable, and the same in Rust and Python
    * `:message` - what happened, in words
    * `:region` - the region it happened to, when there is one
    * `:operation` - the function that was called, such as `:read`
    * `:remedy` - what to do about it
    * `:platform`, `:process_id`, `:timestamp` - where, in which process and when a public function
      answered it
    * `:additional_info` - a map with what else is known, such as the value that came and what was
      expected

  `class/1` sorts the codes. `docs/errors.md` lists them all, with the level at which each is logged:
  every error that a function answers is one line in the log, unless the same error of the same
  function comes more than ten times in ten seconds; then a line says how many were left out. While
  the application does not run, nothing is logged.

      iex> {:error, error} = Snakepit.SharedMemory.read("no-such-region")
      iex> {error.code, error.region, error.operation}
      {:not_found, "no-such-region", :read}
  """

  alias Snakepit.SharedMemory.Error.{Catalogue, Foreign, Handling}

  @io_classes %{
    allocate_region: :allocation_failed,
    adopt_region: :allocation_failed,
    share: :allocation_failed,
    map_region: :mapping_failed,
    fetch: :mapping_failed,
    binary: :mapping_failed,
    unmap_region: :cleanup_failed,
    cleanup: :cleanup_failed,
    deallocate_region: :cleanup_failed,
    cleanup_regions: :cleanup_failed
  }

  @native_codes ~w(already_exists not_found invalid_name invalid_size invalid_option invalid_handle
                   version_conflict torn empty permission_denied resource_exhausted
                   deadline_violation io segment_busy out_of_bounds corrupted truncated sealed
                   not_sealed schema_mismatch stale timeout closed unsupported not_inherited)a

  @own_codes ~w(not_started disabled invalid_argument not_mapped not_referenced)a

  @typedoc "One of `codes/0`."
  @type code :: atom()

  @typedoc """
  What kind of failure it is. Besides the classes of Snakepit's design there are `:invalid_request` (the call
  could not succeed), `:value_unavailable` (not now, or not that value) and `:not_available` (the
  application does not run).
  """
  @type class ::
          :allocation_failed
          | :mapping_failed
          | :permission_denied
          | :region_not_found
          | :memory_limit_exceeded
          | :platform_error
          | :security_violation
          | :corruption_detected
          | :cleanup_failed
          | :invalid_request
          | :value_unavailable
          | :not_available

  @type t :: %__MODULE__{
          code: code(),
          message: String.t(),
          region: String.t() | nil,
          operation: atom() | nil,
          remedy: String.t() | nil,
          platform: atom(),
          process_id: pid() | nil,
          timestamp: DateTime.t() | nil,
          additional_info: map()
        }

  defexception [
    :code,
    :message,
    :region,
    :operation,
    :remedy,
    :platform,
    :process_id,
    :timestamp,
    additional_info: %{}
  ]

  @doc "All codes: those of the Rust core, and those that only the Elixir side knows."
  @spec codes() :: [code()]
  def codes, do: @native_codes ++ @own_codes

  @doc false
  @spec native_codes() :: [code()]
  def native_codes, do: @native_codes

  @doc false
  @spec new(code(), String.t(), keyword()) :: t()
  def new(code, message, details \\ []) do
    struct!(%__MODULE__{code: code, message: message}, details)
  end

  # What the NIF answers: `{code, message, segment | nil, remedy}`.
  @doc false
  @spec from_native({code(), String.t(), String.t() | nil, String.t()}, atom(), String.t() | nil) ::
          t()
  def from_native({code, message, segment, remedy}, operation, region \\ nil) do
    %__MODULE__{
      code: code,
      message: message,
      region: region || segment,
      operation: operation,
      remedy: remedy
    }
  end

  # An answer of the NIF as one of ours.
  @doc false
  @spec wrap({:ok, value} | {:error, tuple()}, atom(), String.t() | nil) ::
          {:ok, value} | {:error, t()}
        when value: term()
  def wrap({:ok, _value} = ok, _operation, _region), do: ok

  def wrap({:error, failure}, operation, region),
    do: {:error, from_native(failure, operation, region)}

  @doc false
  @spec not_started(atom()) :: t()
  def not_started(operation) do
    new(:not_started, "the application :snakepit_shared_memory is not running",
      operation: operation,
      remedy: "start it: Application.ensure_all_started(:snakepit_shared_memory)"
    )
  end

  @doc false
  @spec not_found(String.t(), atom()) :: t()
  def not_found(id, operation) do
    new(:not_found, "region not found: #{id}",
      region: id,
      operation: operation,
      remedy: "check the id; the region may have been deallocated, or its owner may have ended"
    )
  end

  @doc """
  The class of an error, or of a code by itself.

  What the operating system refuses (`:io`) is classed by what was being done when that is known.

      iex> Snakepit.SharedMemory.Error.class(:resource_exhausted)
      :memory_limit_exceeded
      iex> {:error, error} = Snakepit.SharedMemory.allocate_region(5000)
      iex> {error.code, Snakepit.SharedMemory.Error.class(error)}
      {:invalid_size, :invalid_request}
  """
  @spec class(t() | code()) :: class()
  def class(%__MODULE__{code: :io, operation: operation})
      when is_map_key(@io_classes, operation),
      do: Map.fetch!(@io_classes, operation)

  def class(%__MODULE__{code: code}), do: class(code)
  def class(code) when is_atom(code), do: Catalogue.fetch(code).class

  @doc """
  An error of code that deals with regions itself, as one of these: with a code, its context and a
  remedy, and one line in the log.

  `type` is a class of the design's (`t:class/0` but its last three); `context` a map or keyword list of
  `:region_id`, `:operation`, `:platform`, `:process_id`, `:timestamp` and `:additional_info`, none of which need be
  there; `original` what went wrong, any term, kept in `:additional_info`. One that is an error of ours already keeps
  its code and what it says. The class of the answer is `type`, but that `:security_violation` is
  `:permission_denied`: nothing finds violations yet.

      iex> alias Snakepit.SharedMemory.Error
      iex> {:error, error} = Error.handle_error(:allocation_failed, %{region_id: "r"}, :region_limit_exceeded)
      iex> {error.code, error.region, error.remedy}
      {:resource_exhausted, "r", "deallocate what is not needed, or raise :max_regions"}
  """
  @spec handle_error(class(), map() | keyword(), term()) :: {:error, t()}
  def handle_error(type, context, original), do: Handling.handle(type, context, original)

  @doc """
  The same error as a `Snakepit.Error`, when Snakepit is loaded; else the error as it is.

  Its category is `:timeout`, `:validation` or `:pool`; its details have `:reason` (our code),
  `:class`, `:region_id`, `:operation`, `:remedy`, `:platform`, `:process_id`, `:timestamp` and
  `:additional_info`.
  """
  @spec to_snakepit(t()) :: t() | struct()
  def to_snakepit(%__MODULE__{} = error), do: Foreign.convert(error)

  @impl true
  def message(%__MODULE__{} = error) do
    Enum.join([error.message | Enum.reject([during(error), remedy(error)], &is_nil/1)], "; ")
  end

  defp during(%{operation: nil}), do: nil
  defp during(%{operation: operation, region: nil}), do: "in #{operation}"

  defp during(%{operation: operation, region: region}),
    do: "in #{operation} of #{inspect(region)}"

  defp remedy(%{remedy: nil}), do: nil
  defp remedy(%{remedy: remedy}), do: "remedy: #{remedy}"
end
