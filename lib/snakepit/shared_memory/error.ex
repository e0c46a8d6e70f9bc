defmodule Snakepit.SharedMemory.Error do
  @moduledoc """
  Why a call failed, and what to do about it.

  Every function of `Snakepit.SharedMemory` answers `{:error, %Error{}}`; its `!` twin raises it.

    * `:code` - what went wrong, an atom of `codes/0`; stable, and the same in Rust and Python
    * `:message` - what happened, in words
    * `:region` - the region it happened to, when there is one
    * `:operation` - the function that was called, such as `:read`
    * `:remedy` - what to do about it

      iex> {:error, error} = Snakepit.SharedMemory.read("no-such-region")
      iex> {error.code, error.region, error.operation}
      {:not_found, "no-such-region", :read}
  """

  @native_codes ~w(already_exists not_found invalid_name invalid_size invalid_option invalid_handle
                   version_conflict torn empty permission_denied resource_exhausted
                   deadline_violation io segment_busy out_of_bounds corrupted truncated sealed
                   not_sealed schema_mismatch stale timeout closed unsupported)a

  @own_codes ~w(not_started disabled invalid_argument not_mapped not_referenced)a

  @typedoc "One of `codes/0`."
  @type code :: atom()

  @type t :: %__MODULE__{
          code: code(),
          message: String.t(),
          region: String.t() | nil,
          operation: atom() | nil,
          remedy: String.t() | nil
        }

  defexception [:code, :message, :region, :operation, :remedy]

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
