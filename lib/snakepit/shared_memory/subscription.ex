defmodule Snakepit.SharedMemory.Subscription do
  @moduledoc false
  # Changes of a region as messages. One thread of the core waits for all, one of the NIF sends; nothing runs in between.

  alias Snakepit.SharedMemory.{Error, Native, Options, Reading, Target, Telemetry, Writing}

  @schema [
            active: {:active, true},
            pid: {{:nilable, :pid}, nil},
            since: {{:nilable, {:integer, 0, 0xFFFF_FFFF_FFFF_FFFF}}, nil}
          ] ++ Target.schema()

  @spec subscribe(term(), term()) :: {:ok, reference()} | {:error, Error.t()}
  def subscribe(region, opts) do
    Telemetry.span(:subscribe, Target.id(region), fn ->
      with {:ok, options} <- Options.validate(opts, @schema, :subscribe),
           {:ok, target} <- Target.resolve(region, options, :subscribe) do
        subscribe(region, target, options)
      end
    end)
  end

  defp subscribe(%{"__snakepit_shm__" => _}, target, _options) do
    {:error, Writing.sealed_by_handle(target.id, :subscribe)}
  end

  defp subscribe(region, target, options) do
    Reading.with_reader(region, target, :subscribe, &start(&1, target, options))
  end

  defp start(reader, target, options) do
    with {:ok, since} <- since(reader, target, options) do
      started = Native.subscribe(reader, options.pid || self(), since, options.active)
      Error.wrap(started, :subscribe, target.id)
    end
  end

  defp since(_reader, _target, %{since: since}) when since != nil, do: {:ok, since}

  defp since(reader, target, _options) do
    Error.wrap(Native.reader_version(reader), :subscribe, target.id)
  end

  @spec set_active(term(), term()) :: {:ok, reference()} | {:error, Error.t()}
  def set_active(ref, active) do
    with {:ok, _} <- Options.validate([active: active], [active: {:active, true}], :set_active) do
      on(ref, :set_active, &Native.set_active(&1, active))
    end
  end

  @spec unsubscribe(term()) :: {:ok, reference()} | {:error, Error.t()}
  def unsubscribe(ref), do: on(ref, :unsubscribe, &Native.unsubscribe/1)

  defp on(ref, operation, fun) do
    :ok = fun.(ref)
    {:ok, ref}
  rescue
    ArgumentError ->
      {:error,
       Error.new(:invalid_argument, "not a subscription: #{inspect(ref, limit: 5)}",
         operation: operation,
         remedy: "pass the reference that subscribe/2 returned"
       )}
  end
end
