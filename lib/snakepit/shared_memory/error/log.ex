defmodule Snakepit.SharedMemory.Error.Log do
  @moduledoc false
  # The log lines of errors, one for each error that the public functions answer, where it leaves
  # the library: what is tried and handled inside is nobody's business.
  #
  # A loop that fails cannot flood the log. Of each code in each operation, so many are written in
  # a span of time, and at its end how many were left out. Counting is done by the caller, in a
  # table of the application's; the process here only ends the spans, and sleeps while there is
  # none.

  use GenServer

  require Logger

  alias Snakepit.SharedMemory.{Config, Error, Platform}
  alias Snakepit.SharedMemory.Error.Catalogue

  @table :snakepit_shm_error_log
  @burst 10
  @counts Enum.to_list(1..@burst)
  @span_ms 10_000
  # Characters of a line.
  @longest 1_000

  @doc "How many lines of one code in one operation are written in a span."
  @spec burst() :: pos_integer()
  def burst, do: @burst

  # -- in the caller --------------------------------------------------------------------------

  @doc "The error with what the caller knows about it, logged if it is to be."
  @spec note(Error.t()) :: Error.t()
  # What a function was given by another public one has had its line.
  def note(%Error{timestamp: %DateTime{}} = error), do: error

  def note(%Error{} = error) do
    row = Catalogue.fetch(error.code)

    error = %{
      error
      | platform: Platform.detect_platform(),
        process_id: self(),
        timestamp: DateTime.utc_now(),
        remedy: error.remedy || row.remedy
    }

    if row.level != nil and allowed?(row.level) and counted(error) <= @burst do
      write(row.level, error)
    end

    error
  end

  @doc """
  A warning about what was handled inside, and is no error of the caller's; counted as errors are.
  """
  @spec warn(atom() | String.t(), atom(), (() -> String.t())) :: :ok
  def warn(code, operation, said) do
    # While the application does not run nothing counts; what is worth a warning then is said.
    if allowed?(:warning) and
         counted(%{code: code, operation: operation}) in [:infinity | @counts] do
      Logger.warning(fn -> one_line("shared memory: #{cut(said.())} (#{code})") end,
        shm_code: code,
        shm_operation: operation
      )
    end

    :ok
  end

  # What nobody will see is not counted either.
  defp allowed?(level), do: Logger.compare_levels(level, Logger.level()) != :lt

  defp counted(%{code: code, operation: operation}) do
    key = {code, operation}
    count = :ets.update_counter(@table, key, 1, {key, 0})
    if count == 1, do: GenServer.cast(__MODULE__, :begun)
    count
  rescue
    # The application does not run: nobody counts, so nothing bounds what would be written.
    ArgumentError -> :infinity
  end

  defp write(level, error) do
    Logger.log(level, fn -> line(error) end,
      shm_code: error.code,
      shm_class: Error.class(error),
      shm_region: error.region,
      shm_operation: error.operation
    )
  end

  # Names come from anywhere: one error is one line, whatever is in it, and not a long one.
  defp line(error) do
    one_line("shared memory: #{cut(Exception.message(error))} (#{error.code})")
  end

  defp one_line(text), do: String.replace(text, ~r/[[:cntrl:]]+/, " ")
  defp cut(text), do: String.slice(text, 0, @longest)

  # -- the table ------------------------------------------------------------------------------

  @doc "Makes the table, which belongs to the caller: the application."
  @spec create_table() :: :ok
  def create_table do
    :ets.new(@table, [:named_table, :public, :set, write_concurrency: true])
    :ok
  end

  # -- server ---------------------------------------------------------------------------------

  @spec start_link(Config.t()) :: GenServer.on_start()
  def start_link(_config), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @impl true
  def init(nil) do
    # So that `terminate/2` is called.
    Process.flag(:trap_exit, true)
    # One that was killed left a span open.
    {:ok, begin(nil)}
  end

  @impl true
  def handle_cast(:begun, timer), do: {:noreply, begin(timer)}
  def handle_cast(message, timer), do: handle_info(message, timer)

  @impl true
  def handle_call(message, {pid, _tag}, timer) do
    shown = inspect(message, limit: 5)
    Logger.warning("shared memory errors: unexpected call from #{inspect(pid)}: #{shown}")
    {:reply, {:error, :unexpected}, timer}
  end

  @impl true
  def handle_info(:over, timer) do
    if timer, do: Process.cancel_timer(timer)
    say_what_was_left_out()
    {:noreply, nil}
  end

  def handle_info(message, timer) do
    Logger.warning("shared memory errors: unexpected message: #{inspect(message, limit: 5)}")
    {:noreply, timer}
  end

  @impl true
  def terminate(_reason, _timer), do: say_what_was_left_out()

  defp begin(nil), do: Process.send_after(self(), :over, @span_ms)
  defp begin(timer), do: timer

  # Each row is taken, so whoever counts next begins a new span.
  defp say_what_was_left_out do
    for {key, _count} <- :ets.tab2list(@table),
        [{{code, operation}, count}] <- [:ets.take(@table, key)],
        count > @burst do
      Logger.log(
        Catalogue.fetch(code).level || :warning,
        "shared memory: #{count - @burst} more errors #{inspect(code)} in #{operation} within " <>
          "#{div(@span_ms, 1000)} s were not logged",
        shm_code: code,
        shm_operation: operation
      )
    end

    :ok
  end
end
