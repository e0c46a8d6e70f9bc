defmodule Snakepit.SharedMemory.Health do
  @moduledoc """
  Checks of what this library promises, for `Snakepit.SharedMemory.health_check/1`.

  | Check | A finding means |
  |---|---|
  | `:processes` | one of this library's processes is not there, suspended, or does not answer (critical) |
  | `:reaper` | nothing looks after what dead processes leave (warning) |
  | `:bookkeeping` | the tables of the registry, and what it counts, contradict one another; or a process that has ended has the right to write a region (critical) |
  | `:segments` | a region of this node is not in shared memory as it should be: gone, damaged, written by somebody else, or mapped here and not known there (critical) |
  | `:orphans` | regions stay that nobody uses, beyond their grace; or corrupted ones (warning) |
  | `:limits` | 80 % (warning) or 95 % (critical) of the regions or bytes that are allowed |
  | `:space` | 80 % (warning) or 95 % (critical) of the memory file system is taken |
  | `:guard` | a file that is cut would end this VM with SIGBUS (critical) |

  With `health_check_interval` (milliseconds) in the configuration the checks run by themselves;
  each run emits `[:snakepit, :shared_memory, :health, :checked]`, and a change of the status is logged.
  """

  alias Snakepit.SharedMemory.{Config, Error, Listing, Options, Registry, Target, Telemetry}
  alias Snakepit.SharedMemory.Health.{Bookkeeping, Processes, Resources, Rights, Segments}

  @typedoc "One thing that is not as it should be."
  @type finding :: %{
          check: atom(),
          severity: :warning | :critical,
          message: String.t(),
          evidence: map(),
          remedy: String.t()
        }

  @type report :: %{
          status: :ok | :degraded | :critical,
          findings: [finding()],
          checked_at: DateTime.t(),
          duration_us: non_neg_integer()
        }

  @schema [timeout: {{:integer, 1, 60_000}, 1_000}] ++ Target.schema()

  @doc "The names of the checks, in the order in which they run."
  @spec checks() :: [atom()]
  def checks, do: Enum.map(all(), &elem(&1, 0))

  defp all do
    [
      processes: &Processes.check(Snakepit.SharedMemory.Supervisor, &1.timeout),
      reaper: &Processes.reaper(Snakepit.SharedMemory.Janitor, &1.timeout),
      bookkeeping: &(Bookkeeping.check(&1.audit) ++ Rights.check(&1.timeout)),
      segments: &Segments.check(&1.audit, &1.listed, &1.place),
      orphans: &Segments.orphans(&1.audit, &1.listed, &1.place, &1.config),
      limits: &Resources.limits(&1.audit, &1.config),
      space: &Resources.space(&1.place, &1.audit),
      guard: &Resources.guard(Snakepit.SharedMemory.Native.guard_state(), &1.audit)
    ]
  end

  @doc false
  @spec check(term(), :monitor | :call) :: {:ok, report()} | {:error, Error.t()}
  def check(opts, source) do
    with {:ok, options} <- Options.validate(opts, @schema, :health_check),
         {:ok, config} <- Config.fetch(:health_check) do
      place = Target.new("", options, config)
      started = System.monotonic_time(:microsecond)
      checked_at = DateTime.utc_now()

      context = %{
        config: config,
        place: place,
        timeout: options.timeout,
        audit: Registry.audit(options.timeout),
        listed: Listing.list(place)
      }

      findings = Enum.flat_map(all(), fn {name, check} -> run(name, check, context) end)

      report = %{
        status: status(findings),
        findings: findings,
        checked_at: checked_at,
        duration_us: System.monotonic_time(:microsecond) - started
      }

      Telemetry.health_checked(place.namespace, source, report)
      {:ok, report}
    end
  end

  # A check that fails must not hide what the others find.
  defp run(name, check, context) do
    check.(context)
  rescue
    error ->
      said = Exception.message(error)
      evidence = %{error: error}
      [finding(name, :warning, "could not be checked: #{said}", evidence, "report this")]
  end

  @doc false
  @spec status([finding()]) :: :ok | :degraded | :critical
  def status(findings) do
    cond do
      Enum.any?(findings, &(&1.severity == :critical)) -> :critical
      findings != [] -> :degraded
      true -> :ok
    end
  end

  @doc false
  @spec finding(atom(), :warning | :critical, String.t(), map(), String.t()) :: finding()
  def finding(check, severity, message, evidence, remedy) do
    %{check: check, severity: severity, message: message, evidence: evidence, remedy: remedy}
  end

  # What a check says when the registry, on which it rests, did not answer.
  @doc false
  @spec unchecked(atom(), term()) :: [finding()]
  def unchecked(check, reason) do
    remedy = "see the findings of the check :processes"
    message = "could not be checked: the registry did not answer"
    [finding(check, :warning, message, %{reason: reason}, remedy)]
  end

  # Evidence is for people: of thousands, a few.
  @doc false
  @spec some(Enumerable.t()) :: list()
  def some(items), do: Enum.take(items, 10)
end
