defmodule Snakepit.SharedMemory.OptionsTest do
  use ExUnit.Case, async: true

  alias Snakepit.SharedMemory.{Error, Options}

  @schema [
    size: {{:integer, 1, 10}, 5},
    level: {{:in, [:low, :high]}, :low},
    owner: {{:nilable, :pid}, nil},
    label: {:string, "x"},
    flag: {:boolean, true},
    extra: {:map, %{}},
    count: {{:integer, 0, :infinity}, 0},
    limit: {{:either, [{:in, [:none]}, {:tuple, [{:in, [:most]}, {:integer, 1, 9}]}]}, :none},
    nested:
      {{:options,
        [level: {:boolean, true}, deep: {{:options, [size: {{:integer, 1, 3}, 2}]}, nil}]}, nil}
  ]

  defp message(options) do
    {:error, %Error{code: :invalid_option, operation: :test} = error} =
      Options.validate(options, @schema, :test)

    error.message
  end

  test "fills in defaults, from a keyword list or a map" do
    defaults = Options.defaults(@schema)
    assert Options.validate([], @schema, :test) == {:ok, defaults}
    assert Options.validate(%{}, @schema, :test) == {:ok, defaults}
    given = [size: 1, level: :high, owner: self(), label: "y", flag: false, extra: %{a: 1}]
    assert {:ok, all} = Options.validate(given, @schema, :test)
    assert all == Map.merge(defaults, Map.new(given))
    assert Options.validate(Map.new(given), @schema, :test) == {:ok, all}
  end

  test "names the option, what is expected and what came" do
    assert message(size: 0) == "invalid option :size: expected an integer from 1 to 10, got: 0"
    assert message(size: nil) =~ "expected an integer from 1 to 10, got: nil"
    assert message(level: :mid) == "invalid option :level: expected one of :low, :high, got: :mid"
    assert message(owner: :me) == "invalid option :owner: expected a pid of this node, got: :me"
    assert message(label: <<255>>) =~ "expected a string"
    assert message(flag: nil) =~ "expected true or false"
    assert message(extra: []) =~ "expected a map"
    assert message(count: -1) =~ "expected an integer of at least 0"
    assert message(%{count: 1.0}) =~ "got: 1.0"
  end

  test "says what was probably meant" do
    assert message(sise: 1) == "unknown option :sise, did you mean :size?"
    assert message(levle: :low) == "unknown option :levle, did you mean :level?"
    assert message(zzz: 1) == "unknown option :zzz"
    assert message(%{"size" => 1}) == ~s(unknown option "size", did you mean :size?)
    assert message(%{1 => 2}) == "unknown option 1"
  end

  test "refuses what holds no options" do
    for thing <- [nil, :size, 1, "size", [1], [{:size}], [:size | 1], {:size, 1}, 1..2] do
      assert message(thing) =~ "expected a keyword list or a map"
    end
  end

  test "cuts long values short" do
    assert String.length(message(size: Enum.to_list(1..100_000))) < 200
    assert String.length(message(level: String.duplicate("x", 100_000))) < 300
  end

  test "options inside an option are filled in and checked, whatever holds them" do
    assert Options.defaults(@schema).nested == %{level: true, deep: %{size: 2}}

    for nested <- [[deep: [size: 3]], %{deep: %{size: 3}}, [deep: %{size: 3}]] do
      assert {:ok, %{nested: %{level: true, deep: %{size: 3}}}} =
               Options.validate([nested: nested], @schema, :test)
    end

    assert {:ok, %{nested: %{level: false, deep: %{size: 2}}}} =
             Options.validate(%{nested: [level: false]}, @schema, :test)
  end

  test "and named by the path to them" do
    assert message(nested: [deep: [size: 4]]) ==
             "invalid option :nested, :deep, :size: expected an integer from 1 to 3, got: 4"

    assert message(nested: [deep: [sise: 1]]) ==
             "unknown option :nested, :deep, :sise, did you mean :size?"

    assert message(nested: %{"level" => 1}) ==
             ~s(unknown option :nested, "level", did you mean :level?)

    assert message(nested: 1) =~
             "invalid option :nested: expected a keyword list or a map, got: 1"

    assert message(nested: [deep: nil]) =~
             "invalid option :nested, :deep: expected a keyword list"

    assert message(nested: [deep: 1..2]) =~
             "invalid option :nested, :deep: expected a keyword list"
  end

  test "tuples and choices" do
    for limit <- [:none, {:most, 1}, {:most, 9}] do
      assert {:ok, %{limit: ^limit}} = Options.validate([limit: limit], @schema, :test)
    end

    for limit <- [:most, {:most, 10}, {:most}, {:most, 1, 2}, {:none, 1}, nil, []] do
      assert message(limit: limit) =~
               "option :limit: expected :none or {:most, an integer from 1 to 9}, got: "
    end
  end
end
