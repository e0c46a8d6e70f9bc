defmodule Snakepit.SharedMemory.Listener do
  @moduledoc false
  # Switches events on for the whole VM and has them sent to a process, as
  # `{:event, name, measurements, metadata}`. For tests that run alone.

  alias Snakepit.SharedMemory.Telemetry

  @doc "From now until the test has ended, `pid` gets all events."
  def attach(pid) do
    load_telemetry()
    call(:attach_many, ["test", Telemetry.events(), &__MODULE__.forward/4, pid])

    ExUnit.Callbacks.on_exit(fn ->
      call(:detach, ["test"])
      :persistent_term.put(:snakepit_shm_telemetry, false)
    end)
  end

  def forward(event, measurements, metadata, pid) do
    send(pid, {:event, event, measurements, metadata})
  end

  defp call(function, arguments), do: apply(:telemetry, function, arguments)

  # The :telemetry application where there is one, else the part of it that we use.
  defp load_telemetry do
    unless Code.ensure_loaded?(:telemetry) do
      body =
        quote do
          def attach_many(id, events, fun, config) do
            :persistent_term.put(:telemetry_test, {id, events, fun, config})
          end

          def detach(_id), do: :persistent_term.erase(:telemetry_test)

          def execute(event, measurements, metadata) do
            case :persistent_term.get(:telemetry_test, nil) do
              {_id, events, fun, config} ->
                if event in events, do: fun.(event, measurements, metadata, config)

              nil ->
                :ok
            end
          end
        end

      Module.create(:telemetry, body, Macro.Env.location(__ENV__))
      ExUnit.Callbacks.on_exit(fn -> :code.purge(:telemetry) and :code.delete(:telemetry) end)
    end

    Telemetry.setup()
  end
end
