defmodule Snakepit.SharedMemory.Health do
  @moduledoc """
  Checks of what this library promises, for `Snakepit.SharedMemory.health_check/1`.

  | Check | A finding means |
  |---|---|
  | `:processes` | one of this library's processes is not there, suspended, or does not answer (critical) |
  | `:reaper` | nothing looks after what dead processes leave (warning) |
  | `:events` | a handler of an event has not returned for five seconds; events wait for it, or are dropped (warning) |
  | `:bookkeeping` | the tables of the registry, and what it counts, contradict one another; or something is kept for a process that has ended, or for a region that has gone (critical) |
  | `:segments` | a region of this node is not in shared memory as it should be: gone, damaged, written by somebody else, or mapped here and not known there (critical) |
  | `:orphans` | regions stay that nobody uses, beyond their grace; or corrupted ones (warning) |
  | `:limits` | 80 % (warning) or 95 % (critical) of the regions or bytes that are allowed |
  | `:space` | 80 % (warning) or 95 % (critical) of the memory file system is taken |
  | `:guard` | a file that is cut would end this VM with SIGBUS (critical) |

  With `health_check_interval` (milliseconds) in the configuration the checks run by themselves;
  each run emits `[:snakepit, :shared_memory, :health, :checked]`, and a change of the status is logged.
  """

  alias Snakepit.SharedMemory.{Bounded, Config, Error, Listing, Native, Options, Registry, Target}
  alias Snakepit.SharedMemory.Telemetry
  alias Snakepit.SharedMemory.Telemetry.Outbox
  alias Snakepit.SharedMemory.Health.{Bookkeeping, Processes, Resources, Segments}

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

  @schema [timeout: {{:integer, 1, 60_000}, 5_000}] ++ Target.schema()

  @doc "The names of the checks, in the order in which a report has their findings."
  @spec checks() :: [atom()]
  def checks, do: Enum.flat_map(lanes(), fn {_prepare, checks} -> Keyword.keys(checks) end)

  # What is in one lane is done one after the other, the lanes at once: a process that does not answer
  # must not take the time of what does not need it.
  defp lanes do
    [
      {& &1,
       processes: &Processes.check(Snakepit.SharedMemory.Supervisor, &1.patience, &1.asker)},
      {& &1, reaper: &Processes.reaper(Snakepit.SharedMemory.Janitor, &1.patience)},
      {& &1, events: &Processes.events(Outbox, &1.patience)},
      {&with_facts/1,
       bookkeeping: &Bookkeeping.check(&1.audit),
       segments: &Segments.check(&1.audit, &1.listed, &1.place),
       orphans: &Segments.orphans(&1.audit, &1.listed, &1.place, &1.config),
       limits: &Resources.limits(&1.audit, &1.config),
       space: &Resources.space(&1.place, &1.audit),
       guard: &Resources.guard(Native.guard_state(), &1.audit)}
    ]
  end

  defp with_facts(%{place: place} = context) do
    context
    |> Map.put(:audit, Registry.audit(context.patience))
    |> Map.put(:listed, Listing.list(place))
  end

  @doc false
  @spec check(term(), :monitor | :call) :: {:ok, report()} | {:error, Error.t()}
  def check(opts, source) do
    with {:ok, options} <- Options.validate(opts, @schema, :health_check),
         {:ok, config} <- Config.fetch(:health_check) do
      place = Target.new("", options, config)
      started = System.monotonic_time(:microsecond)
      checked_at = DateTime.utc_now()

      # What waits for a process gives up a little before the whole does, and can say so.
      context = %{
        config: config,
        place: place,
        patience: max(div(options.timeout * 9, 10), 1),
        asker: self()
      }

      findings = run_all(context, options.timeout)

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

  # Each lane in a process of its own: what hangs, be it the file system, is left behind in time.
  defp run_all(context, timeout) do
    deadline = now() + timeout
    ref = make_ref()
    tasks = for lane <- lanes(), do: Bounded.start(fn -> run_lane(lane, context, ref) end)
    done = collect(ref, length(checks()), deadline, %{})
    # Nobody sends any more when these have returned.
    Enum.each(tasks, &Bounded.stop/1)
    done = collect(ref, length(checks()), now(), done)
    Enum.flat_map(checks(), &Map.get_lazy(done, &1, fn -> [late(&1, timeout)] end))
  end

  defp run_lane({prepare, checks}, context, ref) do
    context = prepare.(context)
    for {name, check} <- checks, do: send(context.asker, {ref, name, run(name, check, context)})
  end

  defp collect(_ref, wanted, _deadline, done) when map_size(done) == wanted, do: done

  defp collect(ref, wanted, deadline, done) do
    receive do
      {^ref, name, findings} -> collect(ref, wanted, deadline, Map.put(done, name, findings))
    after
      max(deadline - now(), 0) -> done
    end
  end

  defp late(name, timeout) do
    remedy = "allow it a longer :timeout; the machine is busy, or its memory file system hangs"
    finding(name, :warning, "could not be checked within #{timeout} ms", %{}, remedy)
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

  # Between two looks at what may be in order a moment later.
  @pause_ms 10

  @doc false
  # Only what several looks have in common, by `key`: a look may fall between two steps of somebody.
  @spec confirmed((() -> [item]), (item -> term())) :: [item] when item: term()
  def confirmed(look, key), do: confirmed(look.(), look, key, [1, 4, 16])

  defp confirmed(found, _look, _key, pauses) when found == [] or pauses == [], do: found

  defp confirmed(found, look, key, [pause | pauses]) do
    Process.sleep(pause * @pause_ms)
    before = MapSet.new(found, key)
    confirmed(Enum.filter(look.(), &(key.(&1) in before)), look, key, pauses)
  end

  defp now, do: System.monotonic_time(:millisecond)

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
