defmodule Snakepit.SharedMemory.Health.Resources do
  @moduledoc false
  # How much is left of what is limited, and whether the guard stands.

  alias Snakepit.SharedMemory.{Config, Health, Native, Target}

  # Shares of a limit, from which on a finding is made.
  @warning 0.80
  @critical 0.95

  @spec limits({:ok, map()} | {:error, term()}, Config.t()) :: [Health.finding()]
  def limits({:error, reason}, _config), do: Health.unchecked(:limits, reason)

  def limits({:ok, audit}, config) do
    limit(:max_regions, audit.regions, config.max_regions) ++
      limit(:max_total_memory, audit.bytes, config.max_total_memory)
  end

  defp limit(name, used, allowed) do
    message = "#{percent(used, allowed)} % of #{inspect(name)} is used: #{used} of #{allowed}"
    remedy = "deallocate regions that are not needed, or raise #{inspect(name)}"
    graded(:limits, used / allowed, message, %{limit: name, used: used, allowed: allowed}, remedy)
  end

  @spec space(Target.t(), {:ok, map()} | {:error, term()}) :: [Health.finding()]
  def space(place, audit) do
    case Native.space(place.dir) do
      {:ok, %{total: total, available: available}} ->
        taken(place, total, available, reserved(audit))

      {:error, {code, message, _segment, remedy}} ->
        [Health.finding(:space, :critical, message, %{code: code, dir: place.dir}, remedy)]
    end
  end

  defp reserved({:ok, audit}), do: audit.bytes
  defp reserved({:error, _reason}), do: nil

  @doc false
  @spec taken(Target.t(), non_neg_integer(), non_neg_integer(), non_neg_integer() | nil) ::
          [Health.finding()]
  def taken(_place, 0, _available, _reserved), do: []

  def taken(place, total, available, reserved) do
    used = total - available
    message = "#{percent(used, total)} % of the file system of #{place.dir} is taken"
    evidence = %{total: total, available: available, reserved: reserved}

    remedy =
      "remove what is not needed there, or mount it larger; #{inspect(reserved)} bytes are " <>
        "of this node's regions"

    graded(:space, used / total, message, evidence, remedy)
  end

  defp graded(check, share, message, evidence, remedy) do
    cond do
      share >= @critical -> [Health.finding(check, :critical, message, evidence, remedy)]
      share >= @warning -> [Health.finding(check, :warning, message, evidence, remedy)]
      true -> []
    end
  end

  defp percent(used, allowed), do: floor(used * 100 / allowed)

  @spec guard(atom(), {:ok, map()} | {:error, term()}) :: [Health.finding()]
  def guard(:in_front, _audit), do: []
  # Whoever has mapped nothing needs none.
  def guard(:not_installed, {:ok, %{live: []}}), do: []

  def guard(state, _audit) do
    message =
      case state do
        :covered -> "another handler of SIGBUS was installed over the guard"
        :not_installed -> "the guard against SIGBUS is not installed"
      end

    remedy =
      "map any region: that puts the guard in front; and find the library that handles SIGBUS"

    [Health.finding(:guard, :critical, message, %{state: state}, remedy)]
  end
end
