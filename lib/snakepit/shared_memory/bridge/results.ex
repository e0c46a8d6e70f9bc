defmodule Snakepit.SharedMemory.Bridge.Results do
  @moduledoc false
  # What a tool answers: handles in it, however deep, become what they name.
  #
  # A value that the worker gave away is removed as soon as it is fetched; the binary keeps the
  # memory. One that still has a writer, or that is a region of this VM (an argument that came
  # back, say), is somebody's, and only looked at.

  alias Snakepit.SharedMemory
  alias Snakepit.SharedMemory.Bridge.{Fallback, Settings, Wire}
  alias Snakepit.SharedMemory.{Error, Native, Table, Target, Telemetry}

  @type answer :: {:ok, term()} | {:error, term()} | term()

  @spec resolve(answer(), Settings.t()) :: answer()
  def resolve({:ok, value}, settings), do: value(value, settings)
  def resolve(other, _settings), do: other

  @doc "A value with its handles resolved; on an error nothing that was given to us stays behind."
  @spec value(term(), Settings.t()) :: {:ok, term()} | {:error, Error.t()}
  def value(value, settings) do
    {:ok, walk(value, &taken(&1, settings))}
  catch
    {:failed, error} ->
      discard(value, settings)
      {:error, Error.Log.note(error)}
  end

  @doc "Removes all that a value's handles give to us."
  @spec discard(term(), Settings.t()) :: :ok
  def discard(value, settings) do
    walk(value, fn
      {:handle, handle, kind} -> if ours?(handle, kind, settings), do: remove(handle, settings)
      _inline -> :ok
    end)

    :ok
  end

  defp walk(%{__struct__: _} = struct, _take), do: struct

  defp walk(%{} = map, take) do
    case Wire.read(map) do
      :plain -> Map.new(map, fn {key, value} -> {key, walk(value, take)} end)
      found -> take.(found)
    end
  end

  defp walk([head | tail], take), do: [walk(head, take) | walk(tail, take)]
  defp walk(other, _take), do: other

  defp taken({:inline, %{data: data, reason: nil}}, _settings), do: data

  defp taken({:inline, %{data: data, reason: reason}}, settings) do
    said = "the worker could not share it (#{reason})"
    Fallback.note(settings, :result, code(reason), byte_size(data), said)
    data
  end

  defp taken({:error, message}, settings) do
    fail(
      Error.new(:invalid_handle, "invalid result of #{inspect(settings.command)}: #{message}",
        operation: :bridge,
        remedy: "use the same version of snakepit_shm in the workers, or pass resolve: false"
      )
    )
  end

  # A chunk still has its writer, who waits for it to be removed: nobody can adopt it.
  defp taken({:handle, handle, :chunk}, %{resolve: false}), do: handle

  defp taken({:handle, handle, kind}, %{resolve: false} = settings) do
    if ours?(handle, kind, settings), do: adopt(handle, settings)
    handle
  end

  defp taken({:handle, handle, kind}, settings) do
    started = System.monotonic_time()
    given? = ours?(handle, kind, settings)

    case SharedMemory.fetch(handle, dir(settings)) do
      {:ok, value} ->
        if given?, do: remove(handle, settings)
        took = System.monotonic_time() - started
        about = Map.take(settings, [:pool, :command])
        Telemetry.zero_copy(:import, took, handle["bytes"], about)
        value

      {:error, error} ->
        fail(error)
    end
  end

  @spec fail(Error.t()) :: no_return()
  defp fail(error), do: throw({:failed, error})

  # Only codes of ours become atoms.
  defp code(reason), do: Enum.find(Error.codes(), :unknown, &(Atom.to_string(&1) == reason))

  # Whether it is given to whoever has the handle.
  defp ours?(handle, kind, settings) do
    with {:ok, target} <- Target.resolve(handle, Map.new(dir(settings)), :bridge),
         :error <- Table.record(target.key),
         {:ok, report} <- Native.inspect_segment(Target.native(target)) do
      kind == :chunk or report.orphaned
    else
      _ -> false
    end
  end

  # With a chunk, removing it is what tells its worker to go on. Somebody else may have removed it.
  defp remove(handle, settings), do: SharedMemory.deallocate_region(handle, dir(settings))

  # It goes with the caller now. Where a limit forbids that, it goes after the grace of what was left.
  defp adopt(handle, settings) do
    options = [owner: settings.owner, session: settings.session]
    SharedMemory.adopt_region(handle, options ++ dir(settings))
  end

  # A handle names its namespace itself.
  defp dir(settings), do: Keyword.take(Settings.place(settings), [:dir])
end
