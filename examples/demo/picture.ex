defmodule Demo.Picture do
  @moduledoc """
  Real data to Python and back: the file's contents are shared with type and shape, the worker is given the handle,
  its answer is read where it lies, compared with Elixir's own computation, and drawn.
  """

  alias Demo.{Edges, Histogram, JSON, Panel, PNG, Source, Table, Worker}
  alias Snakepit.SharedMemory, as: SHM

  @doc "Does all of that and writes the picture of before and after into the folder `out`."
  @spec run(Worker.t(), Source.t(), Path.t()) :: :ok
  def run(worker, %Source{} = source, out) do
    IO.puts(
      "   a #{source.what}, #{Table.bytes(byte_size(source.data))}: #{source.dtype} #{inspect(source.shape)}"
    )

    handle = SHM.share!(source.data, dtype: source.dtype, shape: source.shape)
    IO.puts("   the handle, all that Python is given:\n     #{JSON.encode(handle)}")

    {%{"handle" => answer}, crossed} =
      Worker.call(worker, %{op: operation(source), handle: handle})

    result = SHM.fetch!(answer)
    {checked, picture} = finish(source, result)
    IO.puts("   #{checked}; #{Table.bytes(crossed)} crossed the pipe")

    SHM.deallocate_region!(handle)
    SHM.deallocate_region!(answer)
    write(picture, out)
  end

  defp operation(%Source{kind: :picture}), do: "edges"
  defp operation(%Source{kind: :values}), do: "histogram"

  defp finish(%Source{kind: :picture, picture: picture}, result) do
    equal!(result, Edges.of(picture), "edges")
    edges = %PNG{width: picture.width, height: picture.height, channels: 1, pixels: result}
    pixels = picture.width * picture.height
    {"Python's edges equal Elixir's in all #{pixels} pixels", Panel.beside(picture, edges)}
  end

  defp finish(%Source{kind: :values, data: data, dtype: dtype}, result) do
    {bins, counts, strange} = Histogram.of(data, dtype)
    equal!(result, for(count <- counts, into: <<>>, do: <<count::64-little>>), "histogram")
    values = byte_size(bins)
    side = values |> :math.sqrt() |> ceil() |> min(256)
    not_numbers = if strange > 0, do: " (#{strange} are no finite number)", else: ""

    {"Python's histogram equals Elixir's, over all #{values} values#{not_numbers}",
     Panel.beside(Panel.square(bins, side), Panel.bars(counts, 256))}
  end

  defp equal!(result, expected, what) do
    if result != expected, do: raise("Python's #{what} differ from Elixir's own computation")
  end

  defp write(picture, out) do
    File.mkdir_p!(out)
    path = Path.join(out, "before-after.png")
    File.write!(path, PNG.encode(picture))
    IO.puts("   before and after: #{Path.expand(path)}")
  end
end
