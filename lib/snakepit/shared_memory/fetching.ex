defmodule Snakepit.SharedMemory.Fetching do
  @moduledoc false
  # What a handle names: in place as a binary or a tensor, or copied into what is there already.
  #
  # What its maker has given away becomes the fetching process's own: from then on it is a region of this
  # VM like any other. Made by a worker that was lent a region of ours, the region is ours already, and
  # only the writer's place is taken back.

  alias Snakepit.SharedMemory.{Access, Adoption, Buffer, Config, Dtype, Error, Lifecycle, Native}
  alias Snakepit.SharedMemory.{Options, Pool, Region, Table, Target, Telemetry, Tensor, Writing}

  @fetch [
           as: {{:in, [:binary, :tensor]}, :binary},
           into: {:term, nil},
           adopt: {{:nilable, :boolean}, nil}
         ] ++ Lifecycle.bookkeeping_schema()

  # How often somebody looks whether another process of this VM, who is about to have a result, has it, and the pause.
  @tries 5
  @pause_ms 2

  @spec fetch(term(), term()) :: {:ok, term()} | {:error, Error.t()}
  def fetch(handle, opts) do
    Telemetry.span(:fetch, Target.id(handle), fn _ -> handle["bytes"] end, fn ->
      with {:ok, options} <- Options.validate(opts, @fetch, :fetch),
           :ok <- check_map(handle),
           :ok <- check_into(options),
           {:ok, target} <- Target.resolve(handle, options, :fetch),
           {:ok, binary, given} <- open(handle, target, options),
           {:ok, value} <- value_or_back(binary, given, handle, options),
           :ok <- own(given, handle, target, options) do
        {:ok, value}
      end
    end)
  end

  # Anything but a handle is an invalid handle here, not some other kind of region.
  defp check_map(%{"__snakepit_shm__" => _}), do: :ok

  defp check_map(other) do
    shown = inspect(other, limit: 5, printable_limit: 60)

    {:error,
     Error.new(:invalid_handle, "invalid handle: #{shown}",
       operation: :fetch,
       remedy: "pass the map that share/2 returned, or its JSON decoded with string keys"
     )}
  end

  defp check_into(%{into: nil}), do: :ok

  defp check_into(%{as: :tensor}) do
    {:error,
     Error.new(:invalid_option, "option :into does not go with as: :tensor",
       operation: :fetch,
       remedy: "leave one of them out: a tensor lies in the region that is there"
     )}
  end

  defp check_into(%{adopt: true}) do
    {:error,
     Error.new(:invalid_option, "option :into does not go with adopt: true",
       operation: :fetch,
       remedy: "leave one of them out: what was given away is removed when it has been copied"
     )}
  end

  defp check_into(%{into: into}) when is_binary(into) or is_struct(into, Buffer), do: :ok
  defp check_into(%{into: into}) when is_struct(into, Region), do: :ok

  defp check_into(%{into: into}) do
    {:error, Options.invalid("option :into", "a buffer/2 or a region", into, :fetch)}
  end

  defp open(handle, target, options) do
    Table.used(target.key)

    with {:ok, config} <- Config.fetch(:fetch),
         taking = taking(target, options, config),
         {:ok, {binary, given}} <-
           Error.wrap(Native.fetch_handle(handle, target.dir, taking), :fetch, target.id) do
      Access.viewed(target, {:ok, binary})
      {:ok, binary, given}
    end
  end

  # Whether what was given away is taken over in the same breath.
  defp taking(_target, %{adopt: false}, _config), do: :no
  defp taking(_target, %{into: into}, _config) when into != nil, do: :no

  defp taking(target, _options, config) do
    cond do
      Table.known?(target.key) -> :no
      Pool.serves?(config, target) -> :pooled
      true -> :yes
    end
  end

  # -- as what --------------------------------------------------------------------------------

  # What cannot be had in the form that was asked for is left to others.
  defp value_or_back(binary, given, handle, options) do
    with {:error, error} <- value(binary, handle, options) do
      if is_map(given), do: Adoption.hand_back(given)
      {:error, error}
    end
  end

  defp value(binary, handle, %{as: :tensor}), do: Tensor.from(binary, handle)
  defp value(binary, _handle, %{into: nil}), do: {:ok, binary}

  defp value(binary, handle, %{into: %Buffer{} = buffer}) do
    Buffer.copy(binary, buffer, :fetch, handle["name"])
  end

  defp value(binary, handle, %{into: region} = options) do
    # What is written into a region is in C's order.
    data = in_c_order(binary, handle)
    Writing.write(region, data, description(handle) ++ where(region, options))
  end

  @doc "The bytes of what a handle names in C's order; a copy, if they lie in Fortran's."
  @spec in_c_order(binary(), map()) :: binary()
  def in_c_order(binary, %{"order" => "F", "dtype" => dtype, "shape" => shape}) do
    {:ok, item} = Dtype.item_size(dtype)
    Native.in_c_order(binary, shape, item)
  end

  def in_c_order(binary, _handle), do: binary

  defp description(%{"format" => "numpy", "dtype" => dtype, "shape" => shape}),
    do: [dtype: dtype, shape: shape]

  defp description(%{"format" => "arrow_ipc"}), do: [format: :arrow_ipc]
  defp description(_raw), do: [format: :raw]

  # A mapping knows where it is.
  defp where(%Region{}, _options), do: []
  defp where(_id, options), do: Enum.to_list(Map.take(options, [:dir, :namespace]))

  # -- whose it is ----------------------------------------------------------------------------

  defp own(%{writer: _} = taken, handle, target, options),
    do: kept(taken, handle, target, options, @tries)

  defp own(given, handle, target, options) do
    ours = Table.region(target.key)

    case {options, ours} do
      {%{adopt: false}, _ours} -> :ok
      {_options, {:ok, writer, _reader}} -> taken_back(writer)
      {%{into: nil, adopt: true}, _none} -> taken(handle, target, options, @tries)
      {%{into: into}, _none} when into != nil and given == true -> finished(handle, target)
      _ -> :ok
    end
  end

  # Filled by a worker that was lent it. Should that one not have given it back yet, it is no matter.
  defp taken_back(writer) do
    if Native.is_lent(writer), do: Native.take_back(writer)
    :ok
  end

  # Somebody else was faster, or its time ran out in this moment: the value is here all the same.
  defp kept(taken, handle, target, options, left) do
    with {:error, %{code: :segment_busy}} <- Adoption.keep(taken, target, options, :fetch) do
      again(handle, target, options, left, :ok)
    end
  end

  # Whether or not it was given away.
  defp taken(handle, target, options, left) do
    with {:error, %{code: :segment_busy}} = busy <-
           Adoption.take(handle, target, options, :fetch) do
      again(handle, target, options, left, busy)
    end
  end

  # Another process of this VM has it, or is about to, and may have to leave it after all.
  defp again(handle, target, options, left, last) do
    cond do
      match?({:ok, _writer, _reader}, Table.region(target.key)) -> :ok
      left == 0 -> last
      true -> once_more(handle, target, options, left - 1, last)
    end
  end

  defp once_more(handle, target, options, left, last) do
    receive do
    after
      @pause_ms -> :ok
    end

    case open(handle, target, options) do
      {:ok, _binary, %{writer: _} = taken} -> kept(taken, handle, target, options, left)
      {:ok, _binary, _none} when options.adopt -> taken(handle, target, options, left)
      {:ok, _binary, _none} -> again(handle, target, options, left, last)
      {:error, _gone} -> last
    end
  end

  # It was for us, and we have a copy. Should somebody have taken it meanwhile, it is theirs; should it not
  # go now, it goes when its time is over.
  defp finished(handle, target) do
    _ = finish(handle, target)
    :ok
  end

  @doc "Removes what a handle names and was given to whoever has it, unless somebody has taken it."
  @spec finish(map(), Target.t()) :: Native.answer(:ok) | {:error, Error.t()}
  def finish(handle, target) do
    with {:ok, config} <- Config.fetch(:fetch) do
      Native.finish_handle(handle, target.dir, Pool.serves?(config, target))
    end
  end
end
