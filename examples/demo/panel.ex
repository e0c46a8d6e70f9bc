defmodule Demo.Panel do
  @moduledoc "Draws: two pictures side by side, a bar chart, values as a square of gray."

  alias Demo.PNG

  @gap 8
  @white 255

  @doc "Both pictures beside each other in RGB, on white, with a gap between them."
  @spec beside(PNG.t(), PNG.t()) :: PNG.t()
  def beside(left, right) do
    height = max(left.height, right.height)
    gap = :binary.copy(<<@white>>, @gap * 3)

    pixels =
      Enum.zip_with([rgb_rows(left, height), rgb_rows(right, height)], fn [l, r] ->
        [l, gap, r]
      end)

    %PNG{
      width: left.width + @gap + right.width,
      height: height,
      channels: 3,
      pixels: IO.iodata_to_binary(pixels)
    }
  end

  @doc "One bar for each count, as high as its square root says, so that rare values can be seen too."
  @spec bars([non_neg_integer()], pos_integer()) :: PNG.t()
  def bars(counts, height) do
    tallest = counts |> Enum.max() |> max(1)
    heights = for count <- counts, do: ceil(height * :math.sqrt(count / tallest))

    pixels =
      for y <- height..1//-1,
          bar <- heights,
          into: <<>>,
          do: if(bar >= y, do: <<30>>, else: <<235>>)

    %PNG{width: length(counts), height: height, channels: 1, pixels: pixels}
  end

  @doc "A square of `side * side` of the bytes in `values`, taken at even distances and in order."
  @spec square(binary(), pos_integer()) :: PNG.t()
  def square(values, side) do
    size = byte_size(values)

    pixels =
      for i <- 0..(side * side - 1),
          into: <<>>,
          do: <<:binary.at(values, div(i * size, side * side))>>

    %PNG{width: side, height: side, channels: 1, pixels: pixels}
  end

  defp rgb_rows(%PNG{width: width, channels: channels, pixels: pixels, height: own}, height) do
    rows = for <<row::binary-size(width * channels) <- pixels>>, do: rgb(row, channels)
    rows ++ List.duplicate(:binary.copy(<<@white>>, width * 3), height - own)
  end

  defp rgb(row, 1), do: for(<<y <- row>>, into: <<>>, do: <<y, y, y>>)
  defp rgb(row, 2), do: for(<<y, _a <- row>>, into: <<>>, do: <<y, y, y>>)
  defp rgb(row, 3), do: row
  defp rgb(row, 4), do: for(<<rgb::binary-3, _a <- row>>, into: <<>>, do: rgb)
end
