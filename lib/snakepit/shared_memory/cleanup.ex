defmodule Snakepit.SharedMemory.Cleanup do
  @moduledoc false
  # Cleaning up when asked to. What may be removed is decided by the core, under the namespace's
  # lock; nothing that a living process uses ever is.

  alias Snakepit.SharedMemory.{Config, Error, Native, Options, Recorder, Target, Telemetry}

  # A century, in milliseconds.
  @longest 3_155_760_000_000

  @schema [
            grace: {{:nilable, {:integer, 0, @longest}}, nil},
            min_age: {{:integer, 0, @longest}, 0},
            module: {{:nilable, :string}, nil},
            pattern: {{:nilable, :string}, nil},
            dry_run: {:boolean, false},
            corrupted: {:boolean, false}
          ] ++ Target.schema()

  @spec run(term()) :: {:ok, map()} | {:error, Error.t()}
  def run(opts) do
    started = System.monotonic_time()
    answer = clean_up(opts)
    Recorder.record(:cleanup, System.monotonic_time() - started, answer, nil)
    answer
  end

  defp clean_up(opts) do
    with {:ok, options} <- Options.validate(opts, @schema, :cleanup_regions),
         {:ok, config} <- Config.fetch(:cleanup_regions),
         place = Target.new("", options, config),
         {:ok, report} <- clean(place, options, config) do
      unless options.dry_run, do: Telemetry.swept(place.namespace, :call, report)
      {:ok, Map.delete(report, :next_due)}
    end
  end

  defp clean(place, options, config) do
    wanted =
      options
      |> Map.take([:min_age, :module, :pattern, :dry_run, :corrupted])
      |> Map.put(:grace, options.grace || config.grace)
      |> Map.merge(Map.take(place, [:namespace, :dir]))

    Error.wrap(Native.cleanup(wanted), :cleanup_regions, nil)
  end
end
