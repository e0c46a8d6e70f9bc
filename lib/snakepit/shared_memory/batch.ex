defmodule Snakepit.SharedMemory.Batch do
  @moduledoc false
  # Many values in one call. Whatever is a mapping or a region that this VM has at hand goes to the NIF
  # library in one go; everything else, and everything that fails in a way that needs a second look,
  # takes the way of a single call, so that there is one place that says what is wrong.

  alias Snakepit.SharedMemory.{Error, Native, Options, Reading, Recorder, Region, Table, Target}
  alias Snakepit.SharedMemory.Writing

  @type answer(value) :: {:ok, value} | {:error, Error.t()}

  @spec read(term(), term()) :: answer([answer(binary())])
  def read(regions, opts) do
    with :ok <- list(regions, "regions", :read_many),
         {:ok, _options} <- Options.validate(opts, Reading.schema(), :read_many) do
      {:ok, read_all(regions, opts)}
    end
  end

  defp read_all(regions, []) do
    readers = for region <- regions, do: reader(region)

    case read_natively(readers) do
      {:ok, {true, values}} -> values
      {:ok, {false, values}} -> Enum.zip_with(values, regions, &read_value/2)
      {:error, :traced} -> Enum.map(regions, &Reading.read(&1, []))
    end
  end

  # Parts, and what may be old, are looked at one by one.
  defp read_all(regions, opts), do: Enum.map(regions, &Reading.read(&1, opts))

  defp read_natively(readers) do
    with {:error, :dirty} <- Native.read_many(readers), do: Native.read_many_dirty(readers)
  end

  defp reader(%Region{reader: reader}), do: reader
  defp reader(id) when is_binary(id), do: Table.reader(id)
  defp reader(_other), do: nil

  defp read_value({:ok, _binary} = ok, _region), do: ok
  # Not attached yet, or no region at all.
  defp read_value(nil, region), do: Reading.read(region, [])
  defp read_value(error, region), do: failed(:read, error, region)

  @spec write(term(), term()) :: answer([answer(non_neg_integer())])
  def write(values, opts) do
    with :ok <- list(values, "values", :write_many),
         :ok <- pairs(values),
         {:ok, _options} <- Options.validate(opts, Writing.schema(), :write_many) do
      {:ok, write_all(values, opts)}
    end
  end

  # In their order: a later value of a region must not be written before an earlier one.
  defp write_all([], _opts), do: []

  defp write_all(values, []) do
    writers = for {region, _data} <- values, do: writer(region)
    data = for {_region, data} <- values, do: data

    case write_natively(writers, data) do
      {:ok, {true, answers}} ->
        answers

      {:ok, {false, answers}} ->
        {done, left} = Enum.split(values, length(answers))
        named = fn answer, {region, _data} -> written(answer, region) end
        Enum.zip_with(answers, done, named) ++ write_next(left)

      {:error, :traced} ->
        for {region, data} <- values, do: Writing.write(region, data, [])
    end
  end

  defp write_all(values, opts),
    do: Enum.map(values, fn {region, data} -> Writing.write(region, data, opts) end)

  # The first of them could not be written in one go with the others.
  defp write_next([]), do: []

  defp write_next([{region, data} | left]),
    do: [Writing.write(region, data, []) | write_all(left, [])]

  defp write_natively(writers, data) do
    with {:error, :dirty} <- Native.write_many(writers, data),
         do: Native.write_many_dirty(writers, data)
  end

  defp writer(%Region{writer: writer}), do: writer
  defp writer(id) when is_binary(id), do: Table.writer(id)
  defp writer(_other), do: nil

  defp written({:ok, _version} = ok, _region), do: ok
  defp written(error, region), do: failed(:write, error, region)

  defp failed(operation, error, region) do
    {:error, error} = Error.wrap(error, operation, Target.id(region))
    Recorder.failed(operation, error)
  end

  # A proper list: `length/1` is the one look that tells.
  defp list(term, what, operation) do
    if proper?(term) do
      :ok
    else
      {:error,
       Error.new(:invalid_argument, "expected a list of #{what}, got: #{shown(term)}",
         operation: operation,
         remedy: "pass a list"
       )}
    end
  end

  defp proper?(term) do
    is_list(term) and length(term) >= 0
  rescue
    ArgumentError -> false
  end

  defp pairs(values) do
    case unpaired(values) do
      nil ->
        :ok

      {:not, other} ->
        {:error,
         Error.new(:invalid_argument, "expected {region, data}, got: #{shown(other)}",
           operation: :write_many,
           remedy: "pass a list of such pairs"
         )}
    end
  end

  defp unpaired([{_region, _data} | values]), do: unpaired(values)
  defp unpaired([]), do: nil
  defp unpaired([other | _values]), do: {:not, other}

  defp shown(term), do: inspect(term, limit: 5, printable_limit: 60)
end
