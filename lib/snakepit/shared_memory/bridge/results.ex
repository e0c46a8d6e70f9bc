defmodule Snakepit.SharedMemory.Bridge.Results do
  @moduledoc false
  # What a tool answers: handles in it, however deep, become what they name.
  #
  # A value that the worker gave away is removed once all of the answer is fetched, for one handle may be in
  # it twice; the binary keeps the memory. It never becomes a region of this VM, so no limit refuses it. One
  # that has a writer, that somebody else has taken, or that is a region of this VM (an argument that came
  # back, say), is somebody's, and only looked at.

  alias Snakepit.SharedMemory
  alias Snakepit.SharedMemory.Bridge.{Fallback, Settings, Wire}
  alias Snakepit.SharedMemory.{Error, Fetching, Native, Table, Target, Telemetry}

  @type answer :: {:ok, term()} | {:error, term()} | term()

  @spec resolve(answer(), Settings.t()) :: answer()
  def resolve({:ok, value}, settings), do: value(value, settings)
  def resolve(other, _settings), do: other

  @doc "A value with its handles resolved; nothing that was given to us stays behind, also on an error."
  @spec value(term(), Settings.t()) :: {:ok, term()} | {:error, Error.t()}
  def value(value, %{resolve: false} = settings) do
    walked = walk(value, &taken(&1, settings))
    for {handle, kind} <- handles(value, []), do: keep(handle, kind, settings)
    {:ok, walked}
  catch
    {:failed, error} ->
      discard(value, settings)
      {:error, Error.Log.note(error)}
  end

  def value(value, settings) do
    {:ok, walk(value, &taken(&1, settings))}
  catch
    {:failed, error} -> {:error, Error.Log.note(error)}
  after
    discard(value, settings)
  end

  @doc "Removes all that a value's handles give to us."
  @spec discard(term(), Settings.t()) :: :ok
  def discard(value, settings) do
    for {handle, kind} <- handles(value, []), do: remove(handle, kind, settings)
    :ok
  end

  @doc "The tokens of the handles in an answer."
  @spec tokens(answer()) :: [term()]
  def tokens({:ok, value}), do: for({handle, _kind} <- handles(value, []), do: handle["token"])
  def tokens(_no_value), do: []

  defp handles(%{__struct__: _}, found), do: found

  defp handles(%{} = map, found) do
    case Wire.form(map) do
      {:handle, handle, kind} -> [{handle, kind} | found]
      :inline -> found
      :plain -> Enum.reduce(map, found, &handles(elem(&1, 1), &2))
    end
  end

  defp handles([head | tail], found), do: handles(tail, handles(head, found))
  defp handles(_other, found), do: found

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

  defp taken({:handle, handle, _kind}, %{resolve: false}), do: handle

  defp taken({:handle, handle, _kind}, settings) do
    started = System.monotonic_time()

    case SharedMemory.fetch(handle, [adopt: false] ++ dir(settings)) do
      {:ok, value} ->
        took = System.monotonic_time() - started
        about = Map.take(settings, [:pool, :command])
        Telemetry.zero_copy(:import, took, handle["bytes"], about)
        # Nobody could tell from the bytes alone in which order they lie.
        Fetching.in_c_order(value, handle)

      {:error, error} ->
        fail(error)
    end
  end

  @spec fail(Error.t()) :: no_return()
  defp fail(error), do: throw({:failed, error})

  # Only codes of ours become atoms.
  defp code(reason), do: Enum.find(Error.codes(), :unknown, &(Atom.to_string(&1) == reason))

  # A chunk still has its writer, who goes on when it is removed. Of all else only what is given to whoever
  # has the handle is ours to remove, or to keep.
  defp remove(handle, kind, settings) do
    with {:ok, target} <- target(handle, settings), :error <- Table.record(target.key) do
      case kind do
        :chunk -> SharedMemory.deallocate_region(handle, dir(settings))
        :value -> Fetching.finish(handle, target)
      end
    end

    :ok
  end

  # It goes with the caller now. Where a limit forbids that, it goes when its time is over. A chunk
  # has a writer, who waits for it to be removed: nobody can adopt it.
  defp keep(_chunk, :chunk, _settings), do: :ok

  defp keep(handle, :value, settings) do
    with {:ok, target} <- target(handle, settings),
         :error <- Table.record(target.key),
         {:ok, %{orphaned: true}} <- Native.inspect_segment(Target.native(target)) do
      options = [owner: settings.owner, session: settings.session]
      SharedMemory.adopt_region(handle, options ++ dir(settings))
    end
  end

  defp target(handle, settings), do: Target.resolve(handle, Map.new(dir(settings)), :bridge)

  # A handle names its namespace itself.
  defp dir(settings), do: Keyword.take(Settings.place(settings), [:dir])
end
