defmodule Snakepit.SharedMemory.SecurityController do
  @moduledoc """
  Access control and protected values: not there yet, and refused by name.

  What there is: files with the mode that `:permissions` says (`0o600`), which the operating system
  enforces between users. What the levels above `:standard` promise (encrypted and signed values,
  memory that is overwritten before it is given back, an audit of accesses) would be worse than
  nothing if it were said and not done. So these functions of the design document answer an
  error with code `:unsupported`, and so does `security_level: :high` wherever it is said. At
  `:standard` there is nothing to be done, and that is what they do.

      iex> alias Snakepit.SharedMemory.SecurityController
      iex> SecurityController.apply_security_policy("region", "value", :standard)
      {:ok, "value"}
      iex> {:error, error} = SecurityController.apply_security_policy("region", "value", :high)
      iex> {error.code, error.message}
      {:unsupported, "security level :high: encrypted values (:high) and signed ones (:maximum) are not there yet"}
  """

  alias Snakepit.SharedMemory.{Error, Options, Recorder, Target}

  @levels [:standard, :high, :maximum]
  @reason "encrypted values (:high) and signed ones (:maximum) are not there yet"

  @type security_level :: :standard | :high | :maximum

  @doc "Whether a process may do something with a region: always an error, for nothing decides it yet."
  @spec validate_access(term(), term(), term()) :: {:error, Error.t()}
  def validate_access(region, _process, _operation) do
    {:error,
     Error.new(:unsupported, "access control among processes is not there yet",
       region: Target.id(region),
       operation: :validate_access,
       remedy: "rely on the files' :permissions, which the operating system enforces"
     )}
    |> noted(:validate_access)
  end

  @doc "The value as a level of security has it written: at `:standard` as it is."
  @spec apply_security_policy(term(), data, security_level()) ::
          {:ok, data} | {:error, Error.t()}
        when data: binary()
  def apply_security_policy(region, data, level) do
    with :ok <- check(level, region, :apply_security_policy),
         :ok <- binary(data, :apply_security_policy) do
      {:ok, data}
    end
    |> noted(:apply_security_policy)
  end

  @doc "What is done with the memory before it is given back: at `:standard` nothing."
  @spec secure_cleanup(term(), binary(), security_level()) :: :ok | {:error, Error.t()}
  def secure_cleanup(region, data, level) do
    with :ok <- check(level, region, :secure_cleanup) do
      binary(data, :secure_cleanup)
    end
    |> noted(:secure_cleanup)
  end

  @doc false
  # Whether a level does what it says.
  @spec check(term(), term(), atom()) :: :ok | {:error, Error.t()}
  def check(:standard, _region, _operation), do: :ok

  def check(level, region, operation) when level in @levels do
    {:error,
     Error.new(:unsupported, "security level #{inspect(level)}: #{@reason}",
       region: Target.id(region),
       operation: operation,
       remedy: "leave :security_level at :standard"
     )}
  end

  def check(level, _region, operation) do
    {:error, Options.invalid("security level", "one of #{inspect(@levels)}", level, operation)}
  end

  defp binary(data, _operation) when is_binary(data), do: :ok
  defp binary(data, operation), do: {:error, Options.invalid("data", "a binary", data, operation)}

  defp noted(answer, operation) do
    with {:error, error} <- Recorder.answered(operation, answer),
         do: {:error, Error.Log.note(error)}
  end
end
