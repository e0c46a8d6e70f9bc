defmodule Snakepit.SharedMemory.DtypeTest do
  use ExUnit.Case, async: true

  alias Snakepit.SharedMemory.Dtype

  doctest Dtype

  test "every name of the table, as an atom and as a tuple" do
    for {name, tuple, string, size} <- [
          {:u8, {:u, 8}, "|u1", 1},
          {:u16, {:u, 16}, "<u2", 2},
          {:u32, {:u, 32}, "<u4", 4},
          {:u64, {:u, 64}, "<u8", 8},
          {:s8, {:s, 8}, "|i1", 1},
          {:s16, {:s, 16}, "<i2", 2},
          {:s32, {:s, 32}, "<i4", 4},
          {:s64, {:s, 64}, "<i8", 8},
          {:f16, {:f, 16}, "<f2", 2},
          {:f32, {:f, 32}, "<f4", 4},
          {:f64, {:f, 64}, "<f8", 8},
          {:c64, {:c, 64}, "<c8", 8},
          {:c128, {:c, 128}, "<c16", 16}
        ] do
      assert Dtype.to_string(name) == {:ok, string}
      assert Dtype.to_string(tuple) == {:ok, string}
      assert Dtype.item_size(string) == {:ok, size}
    end

    assert Dtype.to_string(:bool) == {:ok, "|b1"}
  end

  test "strings of numpy's own" do
    for {string, size} <- [{">f8", 8}, {"<U3", 12}, {"|S5", 5}, {"<M8[ns]", 8}, {"<m8[D]", 8}] do
      assert Dtype.to_string(string) == {:ok, string}
      assert Dtype.item_size(string) == {:ok, size}
    end
  end

  test "what is no element type" do
    for thing <- [:f8, :int, {:f, 33}, {:x, 8}, {:f}, nil, 1, ~c"f4", {:u, "8"}] do
      assert Dtype.to_string(thing) == :error
    end

    for string <- ["", "f4", "<f", "<f0", "<f-4", "<f4x", "|O8", "<z4", "<M4[ns]"] do
      assert Dtype.item_size(string) == :error
    end
  end
end
