defmodule Snakepit.SharedMemory.Listener do
  @moduledoc false
  # Switches events on for the whole VM and has them sent to a process, as
  # `{:event, name, measurements, metadata}`. For tests that run alone.

  alias Snakepit.SharedMemory.Telemetry

  @doc "From now until the test has ended, `pid` gets all events."
  def attach(pid) do
    load()
    call(:attach_many, ["test", Telemetry.events(), &__MODULE__.forward/4, pid])
    ExUnit.Callbacks.on_exit(fn -> call(:detach, ["test"]) end)
  end

  def forward(event, measurements, metadata, pid) do
    send(pid, {:event, event, measurements, metadata})
  end

  defp call(function, arguments), do: apply(:telemetry, function, arguments)

  @doc "The :telemetry application where there is one, else the part of it that we use, for one test."
  def load do
    unless Code.ensure_loaded?(:telemetry) do
      Module.create(:telemetry, stand_in(), Macro.Env.location(__ENV__))
      ExUnit.Callbacks.on_exit(fn -> :code.purge(:telemetry) and :code.delete(:telemetry) end)
    end

    Telemetry.setup()
    ExUnit.Callbacks.on_exit(fn -> :persistent_term.put(:snakepit_shm_telemetry, false) end)
  end

  defp stand_in do
    quote do
      def attach(id, event, fun, config), do: attach_many(id, [event], fun, config)

      def attach_many(id, events, fun, config) do
        :persistent_term.put(:telemetry_test, Map.put(handlers(), id, {events, fun, config}))
      end

      def detach(id) do
        :persistent_term.put(:telemetry_test, Map.delete(handlers(), id))
      end

      def execute(event, measurements, metadata) do
        for {_id, {events, fun, config}} <- handlers(), event in events do
          fun.(event, measurements, metadata, config)
        end

        :ok
      end

      defp handlers, do: :persistent_term.get(:telemetry_test, %{})
    end
  end
end
