defmodule Snakepit.SharedMemory.Listener do
  @moduledoc false
  # Switches events on for the whole VM and has them sent to a process, as
  # `{:event, name, measurements, metadata}`. For tests that run alone.
  #
  # Through the :telemetry application where this VM finds it (as a dependency, or by ERL_LIBS), else
  # through a module of its name that does what we need of it. CONTRIBUTING.md says how to run both.

  alias Snakepit.SharedMemory.Telemetry

  @doc "From now until the test has ended, `pid` gets all events."
  def attach(pid), do: attach("test", Telemetry.events(), &__MODULE__.forward/4, pid)

  @doc "Any other handler, until the test has ended; called with `config` as its last argument."
  def attach(id, events, handler, config) do
    load()
    :ok = call(:attach_many, [id, events, handler, config])
    ExUnit.Callbacks.on_exit(fn -> call(:detach, [id]) end)
  end

  @doc "What events go through, for people."
  def describe do
    if real?(), do: ":telemetry #{Application.spec(:telemetry, :vsn)}", else: "a stand-in"
  end

  defp real?, do: Application.ensure_all_started(:telemetry) |> elem(0) == :ok

  @doc "The identifiers of the handlers of an event."
  def handlers(event), do: for(handler <- call(:list_handlers, [event]), do: handler.id)

  def forward(event, measurements, metadata, pid) do
    send(pid, {:event, event, measurements, metadata})
  end

  defp call(function, arguments), do: apply(:telemetry, function, arguments)

  @doc "The :telemetry application where there is one, else the part of it that we use, for one test."
  def load do
    unless real?() or Code.ensure_loaded?(:telemetry) do
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
        change(&Map.put(&1, id, {events, fun, config}))
      end

      def detach(id), do: change(&Map.delete(&1, id))

      # Handlers may fail in several processes at once.
      defp change(how) do
        change = fn -> :persistent_term.put(:telemetry_test, how.(handlers())) end
        :global.trans({:telemetry_test, self()}, change, [node()])
      end

      def list_handlers(event) do
        for {id, {events, _fun, _config}} <- handlers(), event in events, do: %{id: id}
      end

      # As with the real one, a handler that fails is detached, and its caller never knows.
      def execute(event, measurements, metadata) do
        for {id, {events, fun, config}} <- handlers(), event in events do
          try do
            fun.(event, measurements, metadata, config)
          catch
            _kind, _reason -> detach(id)
          end
        end

        :ok
      end

      defp handlers, do: :persistent_term.get(:telemetry_test, %{})
    end
  end
end
