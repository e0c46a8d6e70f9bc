# Checks the demo's own parts: what it computes alone must be right before it can vouch for anything else.
#
#     mix run --no-start examples/demo/check.exs

Code.require_file("load.exs", __DIR__)
ExUnit.start(autorun: false)

defmodule Demo.JSONCheck do
  use ExUnit.Case, async: true
  alias Demo.JSON

  test "reads what it writes" do
    for term <- [
          nil,
          true,
          0,
          -17,
          2.5,
          "",
          "quote \" backslash \\ newline \n bell \a é 😀",
          [],
          [1, [2, [3]]],
          %{"a" => %{"b" => [nil, false]}, "c" => -1.0e-7}
        ] do
      assert JSON.decode(JSON.encode(term)) == {:ok, term}
    end
  end

  test "writes one line" do
    refute JSON.encode(%{"a" => "x\ny\r"}) =~ ~r/[\r\n]/
  end

  test "reads what Python writes" do
    assert JSON.decode(~S( {"a" : [1, -2.5, 1e3, 2E-2], "\u00e9\ud83d\ude00\/": "\t"} )) ==
             {:ok, %{"a" => [1, -2.5, 1000.0, 0.02], "é😀/" => "\t"}}
  end

  test "refuses what is not JSON" do
    for text <- [
          "",
          "{",
          "[1,]",
          "[1 2]",
          "{\"a\"}",
          "{\"a\":1,}",
          "{,}",
          "01",
          "1 2",
          "nul",
          "\"a",
          "\"\\x\"",
          "\"\\ud800\"",
          "\"\\u12\"",
          "\"\n\"",
          "1e999",
          "+1",
          ".5",
          <<?", 0xFF, ?">>
        ] do
      assert {:error, reason} = JSON.decode(text)
      assert is_binary(reason)
    end
  end
end

defmodule Demo.PNGCheck do
  use ExUnit.Case, async: true
  import Bitwise
  alias Demo.PNG

  # Written by libpng: 5 x 3 pixels, RGB; its rows carry the filters sub, Paeth and up.
  @by_libpng Base.decode64!(
               "iVBORw0KGgoAAAANSUhEUgAAAAUAAAADCAIAAADUVFKvAAAAO0lEQVR4nAEwAM//AcXXFBMJEQ/+7+n5Gxkk5gQpCyjzAxH1BOAJDx30BfACJ//w7kLRFwT9XKDe/rBT2AMVZWyjjyQAAAAASUVORK5CYII="
             )
  @its_pixels Base.decode64!("xdcU2OAl594U0Ncv6fsV7uI84eVN3Okt2e1M3QAfFeEszyce8+0qNY0q27By")

  test "reads a file that another program wrote" do
    assert {:ok, %PNG{width: 5, height: 3, channels: 3, pixels: @its_pixels}} =
             PNG.decode(@by_libpng)
  end

  test "reads what it writes, for any number of channels" do
    for channels <- 1..4, {width, height} <- [{1, 1}, {7, 3}, {64, 2}] do
      picture = random(width, height, channels)
      assert picture |> PNG.encode() |> IO.iodata_to_binary() |> PNG.decode() == {:ok, picture}
    end
  end

  test "undoes each filter, for any number of channels" do
    for filter <- 0..4, channels <- 1..4 do
      picture = random(9, 6, channels)
      assert filter |> filtered(picture) |> file(picture) |> PNG.decode() == {:ok, picture}
    end
  end

  test "says what is wrong with a file" do
    <<head::binary-size(40), byte, tail::binary>> = @by_libpng

    for {bytes, wanted} <- [
          {"GIF89a", "signature"},
          {binary_part(@by_libpng, 0, 60), "ends too early"},
          {<<head::binary, bxor(byte, 1), tail::binary>>, "checksum"},
          {header(<<1::32, 1::32, 8, 3, 0, 0, 0>>), "palette"},
          {header(<<1::32, 1::32, 16, 2, 0, 0, 0>>), "16 bits"},
          {header(<<1::32, 1::32, 8, 2, 0, 0, 1>>), "interlaced"},
          {header(<<1::32, 1::32, 8, 5, 0, 0, 0>>), "colour type"},
          {header(<<0::32, 1::32, 8, 2, 0, 0, 0>>), "no sense"},
          {file([0, 1, 2], random(9, 9, 1)), "fewer pixels"},
          {file(:binary.copy(<<0>>, 1_000_000), random(2, 2, 1)), "more pixels"},
          {file([9, 0, 0], random(2, 1, 1)), "filter type 9"}
        ] do
      assert {:error, reason} = PNG.decode(bytes)
      assert reason =~ wanted
    end
  end

  defp random(width, height, channels) do
    pixels = :rand.bytes(width * height * channels)
    %PNG{width: width, height: height, channels: channels, pixels: pixels}
  end

  # The standard's definition, by index: slow, and nothing like how the reader does it.
  defp filtered(filter, %PNG{width: width, height: height, channels: channels, pixels: pixels}) do
    stride = width * channels
    at = fn x, y -> if x < 0 or y < 0, do: 0, else: :binary.at(pixels, y * stride + x) end

    for y <- 0..(height - 1) do
      row =
        for x <- 0..(stride - 1) do
          {a, b, c} = {at.(x - channels, y), at.(x, y - 1), at.(x - channels, y - 1)}

          predicted =
            elem({0, a, b, div(a + b, 2), Enum.min_by([a, b, c], &abs(a + b - c - &1))}, filter)

          at.(x, y) - predicted &&& 255
        end

      [filter | row]
    end
  end

  defp file(rows, %PNG{width: width, height: height, channels: channels}) do
    colour = elem({nil, 0, 4, 2, 6}, channels)
    file(<<width::32, height::32, 8, colour, 0, 0, 0>>, "IDAT", :zlib.compress(rows))
  end

  defp header(fields), do: file(fields, "IDAT", :zlib.compress([0, 0]))

  defp file(header, type, data) do
    IO.iodata_to_binary([
      <<0x89, "PNG\r\n", 0x1A, "\n">>,
      PNG.chunk("IHDR", header),
      PNG.chunk(type, data),
      PNG.chunk("IEND", "")
    ])
  end
end

defmodule Demo.NPYCheck do
  use ExUnit.Case, async: true
  alias Demo.NPY

  defp npy(header, data),
    do: <<0x93, "NUMPY", 1, 0, byte_size(header)::16-little, header::binary, data::binary>>

  test "reads dtype, shape and data" do
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }      \n"
    data = :rand.bytes(24)

    assert NPY.decode(npy(header, data)) ==
             {:ok, struct(NPY, dtype: "<f4", shape: [2, 3], data: data)}
  end

  test "says what is wrong with a file" do
    for {header, data, wanted} <- [
          {"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", :rand.bytes(24),
           "column-major"},
          {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", "short",
           "5 data bytes"},
          {"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", "", "dtype"},
          {"{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (2,), }", "", "structured"}
        ] do
      assert {:error, reason} = NPY.decode(npy(header, data))
      assert reason =~ wanted
    end
  end
end

defmodule Demo.ComputationCheck do
  use ExUnit.Case, async: true
  alias Demo.{Edges, Histogram, PNG, Table}

  test "edges of a step from dark to bright" do
    step = %PNG{width: 4, height: 3, channels: 1, pixels: :binary.copy(<<0, 0, 10, 10>>, 3)}
    assert Edges.of(step) == <<0, 0, 0, 0>> <> <<0, 40, 40, 0>> <> <<0, 0, 0, 0>>
  end

  test "edges of a colour are those of its gray" do
    pixels = for x <- [0, 0, 200, 200], into: <<>>, do: <<x, x, x>>
    picture = %PNG{width: 4, height: 3, channels: 3, pixels: :binary.copy(pixels, 3)}
    assert Edges.of(picture) == <<0, 0, 0, 0>> <> <<0, 255, 255, 0>> <> <<0, 0, 0, 0>>
  end

  test "a picture too small for the operator has no edges" do
    assert Edges.of(%PNG{width: 2, height: 2, channels: 1, pixels: <<1, 200, 3, 4>>}) ==
             <<0, 0, 0, 0>>
  end

  test "a histogram counts each value once, whatever its type and byte order" do
    for {dtype, data} <- [
          {"|u1", <<0, 128, 255>>},
          {"|i1", <<-128, 0, 127>>},
          {"<i2", for(x <- [-300, 0, 299], into: <<>>, do: <<x::signed-little-16>>)},
          {">u4", for(x <- [0, 5, 9], into: <<>>, do: <<x::big-32>>)},
          {"<f8", for(x <- [-1.0, 0.0, 1.0], into: <<>>, do: <<x::float-little-64>>)},
          {">f4", for(x <- [-1.0, 0.0, 1.0], into: <<>>, do: <<x::float-big-32>>)}
        ] do
      {<<first, _middle, last>>, counts, 0} = Histogram.of(data, dtype)
      assert {first, last} == {0, 255}
      assert Enum.sum(counts) == 3
    end
  end

  test "what is no number is in no bin" do
    nan = <<0x7FC00000::little-32>>
    infinite = <<0x7F800000::little-32>>
    data = <<nan::binary, 1.0::float-little-32, infinite::binary, 2.0::float-little-32>>
    {<<_, 0, _, 255>>, counts, 2} = Histogram.of(data, "<f4")
    assert {hd(counts), List.last(counts), Enum.sum(counts)} == {1, 1, 2}
  end

  test "equal values are all in the first bin" do
    {_bins, [5 | rest], 0} = Histogram.of(<<7, 7, 7, 7, 7>>, "|u1")
    assert Enum.all?(rest, &(&1 == 0))
  end

  test "sizes and times as a person reads them" do
    assert Enum.map([1, 1_500, 10_000_000, 100_000_000, 1_073_741_824], &Table.bytes/1) == [
             "1 B",
             "1.5 kB",
             "10 MB",
             "100 MB",
             "1.07 GB"
           ]

    assert Enum.map([850, 12_345, 7_912_000, 1.2e9], &Table.time/1) == [
             "850 ns",
             "12.3 µs",
             "7.91 ms",
             "1.2 s"
           ]
  end

  test "percentiles" do
    assert Table.percentile(Enum.shuffle(1..100), 0.5) == 51
    assert Table.percentile(Enum.shuffle(1..100), 0.99) == 100
    assert Table.percentile([3], 0.99) == 3
  end
end

%{failures: failures} = ExUnit.run()
if failures > 0, do: System.halt(1)
